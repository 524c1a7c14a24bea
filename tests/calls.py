"""What a call of the command line has answered."""

import json


def with_json(result, status=0):
    found, out, err = result
    assert found == status, err
    assert len(out.splitlines()) == 1, out
    return json.loads(out)


def complaint(result, *told, status=2):
    """The one line on stderr, which must name what it was told."""
    found, out, err = result
    assert found == status, (out, err)
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert "Traceback" not in err
    assert err.startswith("airstreams: ")
    for words in told:
        assert str(words) in err
    return err
