"""Errors of several ranks in one text, every code of the table in every format, time stamps, and the table itself."""
import itertools
import random
import re
import time

import pytest
from ascend.npu_texts import ADVICE, call, cann, err, out_of_memory, prefixed, waits
from conftest import ROOT, load_file

from seresnet_timm.ascend.error_codes import ACL, CANN, CODES, HCCL, NAMES, find
from seresnet_timm.ascend.error_events import MAX_EVENTS, EventReader
from seresnet_timm.ascend.error_texts import PATTERNS
from seresnet_timm.ascend.error_words import Kinds
from seresnet_timm.ascend.errors import diagnose, diagnose_text, is_consequence, is_out_of_memory
from seresnet_timm.ascend.fault import ROLES
from seresnet_timm.ascend.faults import FAULTS

FORMS = (7, 8.2, 8.3, 8.5)
EARLY, LATE = '2025-11-19-11:05:00', '2025-11-19-11:35:00'
# faults of rank 3 that are no waits
CAUSES = {
    'memory': f'torch.OutOfMemoryError: {out_of_memory(3)}\n' + err('ERR99999 UNKNOWN applicaiton exception', EARLY,
    1003, 3,
                                                                   3),
    'ecc': call('NPU', 'HBM MULTI BIT ECC ERROR', 507054, time=EARLY, pid=1003, device=3, rank=3),
    'ai_core': call('NPU', 'AclrtSynchronizeStreamWithTimeout(s)', 507015, cann('EZ9999', 'aicore exception', 8.5),
                    time=EARLY, pid=1003, device=3, rank=3),
    'device_lost': call('NPU', 'aclrtMemcpy', 507010, time=EARLY, pid=1003, device=3, rank=3),
    'port_host': call('HCCL', 'HcclGetRootInfo(&id)', 11, cann('EI0019', 'port[60000] bound already', 8.3,
    EARLY + '.1', 1003),
                      time=EARLY, pid=1003, device=3, rank=3),
    'cann_python': f"ModuleNotFoundError: No module named 'tbe'\n{err('ERR99999 UNKNOWN', EARLY, 1003, 3, 3)}",
    'python': f'ValueError: not enough values\n{err("ERR99999 UNKNOWN applicaiton exception", EARLY, 1003, 3, 3)}',
    'unknown': call('NPU', 'x', 507998, cann('EZ4711', 'odd', time=EARLY + '.1', pid=1003), time=EARLY, pid=1003,
    device=3,
                    rank=3),
}


@pytest.mark.parametrize('prefix', ['[rank{}]: ', 'worker-{}: ', ''])
@pytest.mark.parametrize('fault', CAUSES)
def test_the_fault_is_named_and_not_the_waits_of_others(fault, prefix):
    """Wherever it stands in the text."""
    texts = [(3, CAUSES[fault])] + [(r, waits(r, remote=3)) for r in (0, 1, 2)]
    random.Random(fault + prefix).shuffle(texts)
    diagnosis = diagnose_text('\n'.join(
        f'{"Traceback (most recent call last):" if not prefix else ""}\n{prefixed(text, prefix.format(rank))}'
        for rank, text in texts))
    assert diagnosis.first.fault == fault and diagnosis.first.rank == 3
    assert sorted(e.rank for e in diagnosis.others if e.fault == 'exec_timeout') == [0, 1, 2]


@pytest.mark.parametrize('prefix', [
    '{0}: ', '[1,{0}]<stderr>:', '[rank: {0}] ', '[rank{0}]:\t', '\x1b[36m(T pid=1{0}, ip=192.0.2.1)\x1b[0m[rank{0}]: ',
    'Nov 19 11:46:00 n1 train[1{0}]: [rank{0}]: ', '2025-11-19T11:46:00.1+08:00 stderr F [rank{0}]: ',
    'n1: [rank{0}]: ', '192.0.2.1: worker{0}: ', '[pod/job-{0}/ascend] [rank{0}]: ', 'job-{0} ascend [rank{0}]: '])
def test_lines_of_ranks_that_are_mixed_in_time(prefix):
    """One line of each rank after the other, as a terminal shows them; a progress bar and Windows line ends between."""
    texts = [waits(rank, f'2025-11-19-11:45:{rank:02}', 3) for rank in range(6)]
    texts[3] = call('NPU', 'x', 507015, cann('EZ9999', 'there is an aicore error exception'), pid=9, device=3, rank=3)
    rows = itertools.zip_longest(*(text.split('\n') for text in texts))
    lines = [prefix.format(rank) + line for row in rows for rank, line in enumerate(row) if line is not None]
    reader = EventReader().read_text([' 12%|# | 1/9\r 13%|# | 2/9\r', *(x + '\r\n' for x in lines)], 2025)
    diagnosis = diagnose([reader])
    assert (diagnosis.first.fault, diagnosis.first.rank, diagnosis.first.pid) == ('ai_core', 3, 9)
    assert {e.rank for e in diagnosis.others if e.fault == 'exec_timeout'} == {0, 1, 2, 4, 5}


def test_the_first_of_several_faults_and_of_several_waits():
    late = CAUSES['ecc'].replace(EARLY, LATE)
    diagnosis = diagnose_text(f'{late}\nTraceback (most recent call last):\n{CAUSES["memory"]}')
    assert diagnosis.first.fault == 'memory' and diagnosis.others[0].fault == 'ecc'
    waiting = diagnose_text('\n'.join(prefixed(waits(r, f'2025-11-19-11:3{9 - r}:00'), f'[rank{r}]: ') for r in (0, 1,
        2)))
    assert waiting.first.rank == 2
    # without times: as they stand
    bare = [f'[rank{r}]: RuntimeError: ACL stream synchronize failed, error code:507046' for r in (4, 1)]
    assert diagnose_text('\n'.join(bare)).first.rank == 4


def test_a_stop_on_purpose_and_a_broken_link_are_not_to_blame():
    stop = call('NPU', 'FORCE STOP', 107022, time=EARLY, pid=1001, device=1, rank=1)
    link = call('HCCL', 'HcclAllReduce(a)', 12, cann('EI0013', 'An error CQE occurred', 8.3, EARLY + '.1', 1002),
        time=EARLY,
                pid=1002, device=2, rank=2)
    cause = CAUSES['ai_core'].replace(EARLY, LATE)
    texts = [prefixed(t, f'[rank{r}]: ') for r, t in ((1, stop), (2, link), (3, cause), (0, waits(0)))]
    assert diagnose_text('\n'.join(texts)).first.rank == 3
    assert diagnose_text('\n'.join([texts[0], texts[1], texts[3]])).first.rank == 2
    assert diagnose_text('\n'.join([texts[3], texts[0]])).first.rank == 1


def test_a_prefix_on_the_first_line_only_and_a_call_over_two_lines():
    text = ('[rank4]:[E1119 11:14:58.123456789 compiler_depend.ts:444] [Rank 4] HCCL watchdog thread terminated with '
            'exception: ' + call('NPU', 'acl::AclQueryEventRecordedStatus(event_, &status)', 507046, pid=758, device=4,
            rank=4))
    first = diagnose_text(text).first
    assert first.fault == 'sync_timeout' and (first.rank, first.device) == (4, 4)
    text = call('HCCL', 'hcclCommInitRootInfoConfig(n, &info, rank,\n    config, &(comm->c_))', 7)
    assert diagnose_text(text).first.fault == 'communicator'
    text = 'RuntimeError: f:a.cpp:1 NPU function error: HBM MULTI BIT ECC ERROR\n' + err(device=6)
    assert diagnose_text(text).first.fault == 'ecc' and diagnose_text(text).first.device == 6


def test_torchruns_summary_names_a_killed_rank():
    text = ('train.py FAILED\nFailures:\n[0]:\n  time      : 2024-05-21_11:57:55\n  rank      : 3 (local_rank: 3)\n'
            '  exitcode  : -9 (pid: 927000)\n  error_file: <N/A>\n  traceback : Signal 9 (SIGKILL) received by PID '
            '927000\n')
    first = diagnose_text(text + waits(0)).first
    assert first.fault == 'killed' and 'SIGKILL' in first.what and first.rank == 3
    aborted = diagnose_text(text.replace('-9', '-6').replace('Signal 9 (SIGKILL)',
        'Signal 6 (SIGABRT)') + waits(0)).first
    assert aborted.fault == 'exec_timeout'
    assert diagnose_text(text.replace('-9', '-15').replace('Signal 9 (SIGKILL)', 'Signal 15 (SIGTERM)')).first is None


def test_the_exception_above_explains_the_one_below():
    text = ('Traceback (most recent call last):\nImportError: libhccl.so: cannot open shared object file\n\nThe '
    'above exception '
            'was the direct cause of the following exception:\n\nTraceback (most recent call last):\nRuntimeError: '
            'Failed to '
            'load the backend extension: torch_npu.')
    diagnosis = diagnose_text(text)
    assert diagnosis.first.fault == 'cann_missing' and diagnosis.others[0].fault == 'backend_not_loaded'


def test_a_loss_that_breaks_before_an_operator_is_the_cause_but_not_of_other_faults():
    core = CAUSES['ai_core']
    assert diagnose_text(f'step 3 loss: nan\n{core}').first.fault == 'diverged'
    assert diagnose_text(f'{core}\nstep 3 loss: nan').first.fault == 'ai_core'
    assert diagnose_text(f'step 3 loss: nan\n{CAUSES["memory"]}').first.fault == 'memory'


# --- every code in every format ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('form', FORMS)
def test_every_code_of_cann_in_every_format(form):
    for names, _, fault, weight in CANN:
        for name in names.split():
            first = diagnose_text(cann(name, 'Words without meaning.', form) + '\n' + ADVICE).first
            assert first.fault == fault, name
            assert name in [code for code, _ in first.codes]
            # under a number that tells less
            if weight > 40:
                text = call('NPU', 'c10_npu::acl::AclrtX(a[0], &b(1, 2))', 507011, cann(name, 'Words.', form), ADVICE)
                assert diagnose_text(text).first.fault == fault, name


def test_every_number_in_every_shape():
    shapes = ('RuntimeError: f:a.cpp:1 NPU function error: g(a, b), error code is {}',
              'RuntimeError: f:a.cpp:1 OPS function error: call aclnnMul failed, error code is {}',
              'RuntimeError: call aclnnMul failed, error code is {}', 'NPU error, error code is {}',
              'RuntimeError: ACL stream synchronize failed, error code:{}',
              '  aclrt execute failed, runtime result = {}.')
    for names, _, fault, _ in ACL:
        for number in names.split():
            for shape in shapes:
                first = diagnose_text(shape.format(number)).first
                assert first.fault == fault and (f'ACL {number}', CODES[f'ACL {number}'].meaning) in [
                    (name, meaning.partition(', in ')[0]) for name, meaning in first.codes], (shape, number)
    for names, _, fault, _ in HCCL:
        for number in names.split():
            for shape in ('HCCL function error: HcclSend(a, b)', 'OPS function error: HcclAllreduce'):
                first = diagnose_text(f'RuntimeError: f:a.cpp:1 {shape}, error code is {number}').first
                assert first.fault == fault and f'HCCL {number}' in [name for name, _ in first.codes]


@pytest.mark.parametrize('kind', ['NPU', 'HCCL', 'OPS'])
def test_names_of_hardware_faults_win_over_numbers_and_codes(kind):
    for name, _, fault, _ in NAMES:
        for what in (name, f'device error type 3, {name}'):
            text = call(kind, what, 507011, cann('EL0003', 'The argument is invalid.', 8.3), ADVICE)
            assert diagnose_text(text).first.fault == fault, name


@pytest.mark.parametrize('letter, words', [('Z', 'operators'), ('E', 'runtime'), ('I', 'HCCL'), ('J', 'network'), ('H',
'ACL'),
                                           ('L', 'driver'), ('1', 'GE'), ('4', 'TBE'), ('K', 'profiling')])
@pytest.mark.parametrize('form', FORMS)
def test_inner_errors_say_who_reports_them(letter, words, form):
    code = f'E{letter}9999'
    first = diagnose_text(f'{code}: Inner Error!\n' + cann(code, 'Odd words about nothing.', form)).first
    assert first.fault == 'inner' and not first.known and words in first.what and 'Odd words' in first.what
    # what stands under it tells more
    first = diagnose_text(f'{code}: Inner Error!\n' + cann(code, 'x',
        form) + '\n        reason=[vector core exception]').first
    assert first.fault == 'ai_core' and first.known


def test_codes_of_torch_npu():
    assert find('ERR00008').meaning == 'torch_npu: not found' and find('ERR02200').meaning == (
        'HCCL (distributed): a call of HCCL failed')
    assert diagnose_text(err('ERR02011 DIST timeout error')).first.role == 'wait'
    assert diagnose_text(err('ERR00006 PTA memory error')).first.fault == 'memory_device'


def test_what_a_run_asks():
    assert is_out_of_memory(out_of_memory()) and is_out_of_memory(call('NPU', 'x', 507013, cann('EL0004', 'Failed.')))
    assert not is_out_of_memory(CAUSES['ecc']) and not is_out_of_memory('ValueError: memory')
    waits_of_all = (waits(1), 'RuntimeError: [pair.cc:534] Connection closed by peer [127.0.0.1]:4242', 'Broken pipe',
                    'npu:0 lost contact with the other ranks: rank 2 did not take part', CAUSES['ecc'].replace(
                        'HBM MULTI BIT ECC ERROR', 'FORCE STOP'), 'Timed out waiting 60000ms for recv operation')
    assert all(is_consequence(text) for text in waits_of_all)
    assert not any(is_consequence(text) for text in [*CAUSES.values(), 'ValueError: HCCL', ''])


# --- times, size, table -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('stamp', [
    '2025-11-19-11:14:58.516.606', '2025-11-19-11:14:58', '2025-11-19 11:14:58,516', '2025-11-19T11:14:58.123',
    '[2025-11-19 11:14:58:000]', '[E1119 11:14:58.678676591 compiler_depend.ts:1693]', 'Wed Nov 19 11:14:58 2025',
    '19/11/2025 11:14:58'])
def test_times(stamp):
    first = diagnose([EventReader().read_text([f'{stamp} NPU error, error code is 507015'], year=2025)]).first
    assert time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(first.time)) == '2025-11-19 11:14:58'


def test_a_line_without_a_time_has_that_of_the_line_before():
    text = '2025-11-19 11:14:58 INFO step 3\nNPU error, error code is 507015'
    assert time.localtime(diagnose_text(text).first.time).tm_min == 14


def test_long_logs_and_long_lines():
    """Memory for events is bounded, and lines that differ in numbers only are read once."""
    lines = ['[ERROR] HCCL(60,python):2025-12-04-14:46:07 [hccl_socket.cc:106] [60][Wait]something failed, '
    'errNo[0x5]'] * 3000
    started = time.process_time()
    reader = EventReader().read_text([*lines, 'x' * 1000000, CAUSES['ecc'].replace('\n', ' ')])
    assert time.process_time() - started < 5
    assert diagnose([reader]).first.fault == 'ecc' and len(reader.events) < 10
    repeated = EventReader().read_text(
        line for i in range(2 * MAX_EVENTS) for line in ('Traceback (most recent call last):', f'ValueError: {i}'))
    assert len(repeated.events) <= MAX_EVENTS and repeated.left_out == MAX_EVENTS



def test_a_fault_among_thousands_of_others_is_kept():
    """Whatever comes before and after it; each of the others has a process of its own, and is an event."""
    line = '[ERROR] RUNTIME({0},python3):2026-11-20-10:{1:02}:{2:02}.123.456 [engine.cc:7] [{0}] retry of {3}'
    others = [line.format(1000 + i, i // 60 % 60, i % 60, random.choices('abcdefgh', k=9))
              for i in range(3 * MAX_EVENTS)]
    for place in (0, 10, MAX_EVENTS, 2 * MAX_EVENTS, 3 * MAX_EVENTS):
        reader = EventReader().read_text([*others[:place], CAUSES['ecc'], *others[place:]])
        assert diagnose([reader]).first.fault == 'ecc' and len(reader.events) <= MAX_EVENTS, place


@pytest.mark.parametrize('before, text, fault', [
    ('lr 0.1, error code is 100', 'error code is 507015', 'ai_core'),
    ('ret = 123456 of the check', 'ret = 507015 of the check', 'ai_core'),
    ('exitcode  : -15', 'exitcode  : -11', 'killed'),
    ('[Errno 12] x', '[Errno 28] No space left on device', 'disk_full'),
    ('value 123456', '507015', 'ai_core'), ('Loss: 0.123 of rank 3', 'Loss: nan of rank 3', 'diverged')])
def test_lines_that_told_nothing_hide_no_others_of_their_kind(before, text, fault):
    assert diagnose_text('\n'.join([before] * 5 + ['x'] * 200 + [text])).first.fault == fault


def test_a_log_of_many_lines_is_read_quickly():
    """Most lines of a log differ in digits only: 10 MB take a third of a second."""
    line = 'Train: {0} [{0:4}/1000]  Loss: {1:.4f}  Time: 0.{0}s, {0}.12/s  version {0} status ok, connected to {0}'
    lines = [line.format(i % 1000, i % 7 / 9) for i in range(100_000)]
    started = time.process_time()
    assert EventReader().read_text(lines).events == []
    assert time.process_time() - started < 1.5


def test_plog_of_many_errors_is_read_quickly():
    """With addresses and names of kernels that never repeat; a fault that comes late is found."""
    head = '[{}] {}(42,python):2025-12-04-14:46:07.123.456 [x.cc:7] 42 '
    forms = [head.format(level, part) + text for level, part, text in (
        ('INFO', 'HCCL', 'recvBuf[0x{1:x}] error {0}'), ('ERROR', 'IDEDD', 'args dump {0} te_{1:030x}_1'),
        ('ERROR', 'RUNTIME', 'task execute failed, stream_id={0}, err_type=4[fftsplus sdma error], at 0x{1:x}'))]
    lines = [form.format(i, random.getrandbits(120)) for i in range(4000) for form in forms]
    started = time.process_time()
    assert diagnose([EventReader().read_text([*lines, CAUSES['ecc']])]).first.fault == 'ecc'
    assert diagnose([EventReader().read_text(lines)]).first.fault == 'hccl_link'
    assert time.process_time() - started < 6


def test_words_of_all_patterns_are_looked_at():
    """A line that a pattern tells of is not left out beforehand: alternatives of the patterns that are plain text."""
    tried = 0
    for pattern in PATTERNS:
        for part in re.split(r'(?<!\\)\|', pattern.words.pattern):
            text = re.sub(r'\(\?P<\w+>|\(\?[:i!<=]*|[()\[\]{}*+?^$]|\\[bwsdS]|\.\*|\\', '', part)
            if len(text) > 8 and pattern.words.search(text):
                tried += 1
                assert Kinds().wants(text), text
    assert tried > 300


def test_table():
    assert all(code.fault is None or code.fault in FAULTS for code in CODES.values())
    assert all(fault.role in ROLES and fault.what and fault.log for fault in FAULTS.values())
    assert all(fault.remedy for name, fault in FAULTS.items() if name != 'own')


def test_page_of_the_documents():
    module = load_file(ROOT / 'docs' / 'write_errors.py')
    assert module.PAGE.read_text(encoding='utf-8') == module.page(), 'run python docs/write_errors.py'
