"""Error texts in the formats of torch_npu, CANN, HCCL and launchers, put together from parts."""
TS = 'build/CMakeFiles/torch_npu.dir/compiler_depend.ts'
# torch_npu's sentences for numbers of ACL
SENTENCES = {
    107001: 'Invalid device ID.', 107002: 'The context is empty.', 207001: 'Failed to apply for memory.',
    207004: 'The device is unavailable.', 207018: 'The memory on the device is exhausted.',
    500001: 'The internal ACL of the system is incorrect.', 500002: 'A GE error occurs in the system.',
    507001: 'An internal error occurs in the task scheduler module on the device. ',
    507010: 'The task scheduler loses the heartbeat. ', 507011: 'Model execution failed. ',
    507013: 'System Direct Memory Access (DMA) hardware execution error. ',
    507014: 'The aicore execution times out. ', 507015: 'The aicore execution is abnormal. ',
    507018: 'The aicpu execution is abnormal. ', 507033: 'Failed to start the device. ',
    507034: 'Vector core execution timed out. ', 507035: 'The vector core execution is abnormal. ',
    507046: 'In the specified timeout waiting event, all tasks in the specified stream are not completed. ',
    507048: 'The execution of the internal task times out. ', 507899: 'An internal error occurs in the Driver module. ',
    507901: 'The internal host device communication (HDC) session is disconnected. ',
}
ERR = {'NPU': 'ERR00100 PTA call acl api failed', 'OPS': 'ERR01100 OPS call acl api failed',
       'HCCL': 'ERR02200 DIST call hccl api failed.'}
TIME = '2025-11-19-11:14:58'


def err(code=ERR['NPU'], time=TIME, pid=356, device=0, rank=-1) -> str:
    return f'[ERROR] {time} (PID:{pid}, Device:{device}, RankID:{rank}) {code}'


def call(kind, what, number, *under, time=TIME, pid=356, device=0, rank=-1, function='launch') -> str:
    """A call that failed, as torch_npu raises it, and what CANN says under it."""
    lines = [f'RuntimeError: {function}:{TS}:{217 + len(what)} {kind} function error: {what}, error code is {number}',
             err(ERR[kind], time, pid, device, rank)]
    if kind != 'HCCL' and number in SENTENCES:
        lines += [f'[Error]: {SENTENCES[number]}',
                  '        Rectify the fault based on the error information in the ascend log.']
    return '\n'.join([*lines, *under])


def cann(code, sentence, form=8.2, time=f'{TIME}.516.606', pid=356, name='Some_Error') -> str:
    """A sentence of CANN: before 8.0, 8.0 to 8.2, 8.3 and later, inner errors of 8.5."""
    return {7: f'{code}: {time}  {sentence}', 8.2: f'{code}: [PID: {pid}] {time} {sentence}',
            8.3: f'[PID: {pid}] {time} {name}({code}): {sentence}',
            8.5: f'{code}[PID: {pid}] {time} ({code}):  {sentence}'}[form]


# what CANN prints under a sentence; it tells what may be, not what is
ADVICE = ('        Possible Cause: 1. The disk is full. 2. The device is used by another process.\n'
          '        Solution: 1. Check whether EL0004 was reported. 2. Check the port and HCCL_CONNECT_TIMEOUT.\n'
          '        TraceBack (most recent call last):')


def waits(rank, time='2025-11-19-11:30:00', remote=None, form=8.2) -> str:
    """What a rank says when another one does not come."""
    peer = f'[{remote}]' if remote is not None else '[unknown]'
    under = cann('EI0002', 'The wait execution of the Notify register times out. Reason: The Notify register has not '
                 f'received the Notify record from remote rank: {peer}. base information: [streamID:[109], taskID[38]]',
                 form, f'{time}.713.335', 1000 + rank)
    return call('OPS', 'HcclAllreduce', 6, under, time=time, pid=1000 + rank, device=rank % 8, rank=rank)


def out_of_memory(device=2, total=60.97, allocated=59.57, free='300.00 MiB', reserved=60.1) -> str:
    return (f'NPU out of memory. Tried to allocate 386.00 MiB (NPU {device}; {total} GiB total capacity; {allocated} '
    f'GiB '
            f'already allocated; {allocated} GiB current active; {free} free; {reserved} GiB reserved in total by '
            f'PyTorch) '
            'If reserved memory is >> allocated memory try setting max_split_size_mb to avoid fragmentation.')


def prefixed(text, prefix) -> str:
    return '\n'.join(prefix + line for line in text.split('\n'))
