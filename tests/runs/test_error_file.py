"""error.json of torchrun, as torch itself writes it."""
import json

import pytest
from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

from seresnet_timm.errors import RunError
from seresnet_timm.runs.error_file import parse_error


@pytest.mark.parametrize('error, text', [(RunError('No room.'), 'No room.'), (KeyError('x'), 'Traceback')])
def test_what_torch_writes(tmp_path, monkeypatch, error, text):
    file = tmp_path / 'error.json'
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(file))
    try:
        raise error
    except Exception as e:
        ErrorHandler().record_exception(e)
    found = parse_error(file.read_text())
    assert found.kind == type(error).__name__ and found.text().startswith(text)
    assert 'Traceback' in found.traceback and found.when > 1.7e9


def test_other_contents():
    assert parse_error(json.dumps({'message': 'killed'})).text() == 'killed'
    for text in ('', '{', '[]', '{}', '{"message": {}}', '{"message": {"message": "x"}}', '{"message": 3}'):
        assert parse_error(text) is None, text
