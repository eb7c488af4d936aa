"""What torch_npu's errors mean, in one sentence."""
import os
import re
from typing import Optional

# torch_npu writes: '... NPU function error: aclrtMemcpy, error code is 507010', then '[Error]: <CANN's sentence>.'
_CODE = re.compile(r'function error: (\w+), error code is (\d+)')
_SENTENCE = re.compile(r'\[Error\]: (\S.*?)\.?\s*$', re.MULTILINE)


def explain(text: str, device: str) -> Optional[str]:
    """Explain an error that torch_npu raised.

    Args:
        text: Text of the exception.
        device: The device of the run, with the index of this rank.

    Returns:
        What happened and what to do; None if the error has another cause.
    """
    code, sentence = _CODE.search(text), _SENTENCE.search(text)
    if not code and 'ACL stream synchronize failed' not in text:
        return None
    cause = sentence[1] if sentence else text.strip().splitlines()[0].rstrip('.')
    number = f', error {code[2]} of {code[1]}' if code else ''
    if code and code[1].startswith('Hccl'):
        limit = os.environ.get('HCCL_EXEC_TIMEOUT', '1800')
        return (f'{device} lost contact with the other ranks ({cause}{number}): one of them has ended, hangs or '
                f'cannot be reached, see its log; HCCL waits {limit} s for it (HCCL_EXEC_TIMEOUT).')
    return (f"{device} stopped working ({cause}{number}): `npu-smi info` shows its health, CANN's plog the details "
            '(~/ascend/log).')
