"""Faults of the network between two machines: two network namespaces with a real connection (veth) between them

Needs root, ip and tc. The machines share a file system, as they must for `--max-restarts`.
"""
import os
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from chaos_faults import Faults, Row
from chaos_runs import Run

NODES = (0, 1)


class Network:
    """Two network namespaces, connected, while it is a context."""

    def __init__(self) -> None:
        self.names = [f'seresnet{os.getpid()}n{i}' for i in NODES]

    def __enter__(self) -> 'Network':
        for name in self.names:
            _do('ip', 'netns', 'add', name)
        ends = [['netns', name, 'name', 'link0'] for name in self.names]
        _do('ip', 'link', 'add', 'link0', *ends[0][:2], 'type', 'veth', 'peer', *ends[1][2:], *ends[1][:2])
        for i in NODES:
            self.ip(i, 'addr', 'add', f'{address(i)}/24', 'dev', 'link0')
            self.ip(i, 'link', 'set', 'lo', 'up')
        self.connect(True)
        return self

    def __exit__(self, *_error: Any) -> None:
        for name in self.names:
            _do('ip', 'netns', 'del', name)

    def ip(self, node: int, *arguments: str) -> None:
        _do('ip', '-n', self.names[node], *arguments)

    def connect(self, is_connected: bool) -> None:
        for i in NODES:
            self.ip(i, 'link', 'set', 'link0', 'up' if is_connected else 'down')

    def limit(self, rate: str) -> None:
        """Limit what each machine sends."""
        for name in self.names:
            _do('tc', '-n', name, 'qdisc', 'add', 'dev', 'link0', 'root', 'tbf', 'rate', rate, 'burst', '16kb',
                'latency', '400ms')


def address(node: int) -> str:
    return f'10.14.0.{node + 1}'


def _do(*command: str) -> None:
    subprocess.run(command, check=True)


class NodeFaults:
    """Does each fault to a run of its own, on two machines with a rank each."""

    def __init__(self, faults: Faults, network: Network):
        self._faults, self._network = faults, network

    def start(self, *flags: str) -> List[Run]:
        folder = self._faults.tmp / f'nodes{time.monotonic_ns()}'
        return [self.start_node(i, folder, *flags) for i in NODES]

    def start_node(self, node: int, folder: Path, *flags: str) -> Run:
        network = ('--nnodes', '2', '--node-rank', str(node), '--master-addr', address(0), '--master-port', '29514',
                   '--local-addr', address(node), '--rdzv-timeout', '120', '-b', '8')
        return self._faults.start(
            *network, *flags, folder=folder, prefix=('ip', 'netns', 'exec', self._network.names[node]))

    def is_right(self, runs: List[Run]) -> bool:
        return [run.wait() for run in runs] == [0, 0] and self._faults.is_expected(runs[0].folder, ranks=2)

    def undisturbed(self) -> Row:
        row = Row('two machines, nothing is done', lost='nothing')
        runs = self.start()
        row.is_right, row.seconds = self.is_right(runs), runs[0].seconds
        return row

    def slow(self) -> Row:
        row = Row('the connection of two machines carries 2 Mbit/s from the middle of the run on', lost='nothing')
        runs = self.start()
        runs[0].wait_for('Train: 0')
        self._network.limit('2mbit')
        begun = runs[0].seconds
        row.is_right, row.seconds = self.is_right(runs), runs[0].seconds - begun
        for name in self._network.names:
            _do('tc', '-n', name, 'qdisc', 'del', 'dev', 'link0', 'root')
        return row

    def cut(self, seconds: int) -> Row:
        row = Row(f'the connection of two machines is cut for {seconds} s, --hang-timeout 10 --max-restarts 3')
        runs = self.start('--hang-timeout', '10', '--max-restarts', '3')
        runs[0].wait_for('Train: 1')
        lost, cut = runs[0].lost(), runs[0].seconds
        self._network.connect(False)
        time.sleep(seconds)
        self._network.connect(True)
        restored = runs[0].seconds
        row.seconds = runs[0].wait_for('Train: ', after=restored)[0] - restored
        row.is_right = self.is_right(runs)
        row.lost = f'the {seconds} s'
        if 'Restart 1 of 3' in runs[0].output:
            row.said = runs[0].wait_for('finished a step for|gives no answer|lost contact', after=cut)[1]
            row.lost = f'{lost:.1f} s of work, and the {seconds} s'
        return row

    def killed_rank(self) -> Row:
        row = Row('SIGKILL to the rank of the second of two machines, --max-restarts 3')
        runs = self.start('--max-restarts', '3')
        runs[0].wait_for('Train: 1')
        lost, killed = runs[0].lost(), runs[0].seconds
        runs[1].ranks()[0].kill()
        row.said = runs[1].wait_for('Rank 1 was killed')[1]
        row.seconds = runs[0].wait_for('Train: ', after=runs[0].wait_for('Restart 1 of 3')[0])[0] - killed
        row.lost, row.is_right = f'{lost:.1f} s of work', self.is_right(runs)
        return row

    def killed_launcher(self) -> Row:
        row = Row('SIGKILL to the launcher of the second of two machines, which is started again after both have ended')
        runs = self.start()
        runs[0].wait_for('Train: 1')
        lost, killed = runs[0].lost(), runs[0].seconds
        runs[1].process.kill()
        code = runs[0].wait()
        row.seconds, row.said = runs[0].seconds - killed, runs[0].wait_for('error: ')[1]
        row.lost = f'{lost:.1f} s of work'
        row.is_right = code == 1 and self.is_right([self.start_node(i, runs[0].folder) for i in NODES])
        return row

    def new_launcher(self, node: int) -> Row:
        which = ('first', 'second')[node]
        row = Row(f'SIGKILL to the launcher of the {which} of two machines, which is started again at once, '
                  '--max-restarts 3')
        flags = ('--max-restarts', '3')
        runs = self.start(*flags)
        runs[0].wait_for('Train: 1')
        lost, killed = runs[0].lost(), time.monotonic()
        runs[node].process.kill()
        runs[node].wait()
        runs[node] = self.start_node(node, runs[0].folder, *flags)
        row.said = runs[1 - node].wait_for('lost contact|was killed|gives no answer')[1]
        restarted = runs[1 - node].wait_for('Restart 1 of 3')[0]
        runs[0].wait_for('Train: ', after=restarted if node else 0)
        row.seconds, row.lost = time.monotonic() - killed, f'{lost:.1f} s of work'
        row.is_right = self.is_right(runs)
        return row

    def new_launcher_alone(self) -> Row:
        row = Row('the same of the second machine, without --max-restarts, --rdzv-timeout 30')
        flags = ('--rdzv-timeout', '30')
        runs = self.start(*flags)
        runs[0].wait_for('Train: 1')
        lost, killed = runs[0].lost(), time.monotonic()
        runs[1].process.kill()
        runs[1].wait()
        runs[1] = self.start_node(1, runs[0].folder, *flags)
        codes = [run.wait() for run in runs]
        row.seconds, row.lost = time.monotonic() - killed, f'{lost:.1f} s of work'
        row.said = ' / '.join(run.wait_for('error: ')[1] for run in runs)
        row.is_right = codes == [1, 1] and self.is_right([self.start_node(i, runs[0].folder) for i in NODES])
        return row


def node_faults(faults: Faults) -> Dict[str, Callable[[], Row]]:
    """The faults by their names."""
    def within(call: Callable[..., Row], *arguments: Any) -> Callable[[], Row]:
        def run() -> Row:
            with Network() as network:
                return call(NodeFaults(faults, network), *arguments)
        return run
    calls: Dict[str, Tuple[Any, ...]] = {
        'nodes': (NodeFaults.undisturbed,), 'nodes-slow': (NodeFaults.slow,), 'nodes-cut-3': (NodeFaults.cut, 3),
        'nodes-cut-20': (NodeFaults.cut, 20), 'nodes-killed-rank': (NodeFaults.killed_rank,),
        'nodes-killed-launcher': (NodeFaults.killed_launcher,),
        **{f'nodes-new-launcher-{i}': (NodeFaults.new_launcher, i) for i in NODES},
        'nodes-new-launcher-alone': (NodeFaults.new_launcher_alone,)}
    return {name: within(*call) for name, call in calls.items()}
