"""What the tests of teachers share."""

import pytest


@pytest.fixture(scope="session")
def transformers():
    """The library, where it loads."""
    try:
        import transformers
        from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation  # noqa: F401 (broken ones fail)
    except ImportError as error:
        pytest.skip(f"transformers does not load: {error}; {error.__cause__ or ''}")
    return transformers
