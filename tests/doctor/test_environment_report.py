"""What a bug report shows: the variables of a run, and no secret, address or name."""
import getpass
import json
import os
import socket
import sys

import preloaded
import pytest
from conftest import ROOT, run_here

from seresnet_timm.doctor import doctor, environment_report
from seresnet_timm.doctor.environment_report import HIDDEN, hide_names, variables
from seresnet_timm.doctor.secrets import Cleaner


@pytest.mark.parametrize('name, value', (
    ('HF_TOKEN', 'hf_abc'), ('HUGGINGFACE_HUB_TOKEN', 'x'), ('WANDB_API_KEY', 'x'), ('MODELSCOPE_API_TOKEN', 'x'),
    ('HTTPS_PROXY', 'proxy:80'), ('http_proxy', 'http://me:word@proxy:80'), ('HF_ENDPOINT', 'https://hub.inside'),
    ('MASTER_ADDR', '10.0.0.5'), ('HCCL_IF_IP', '10.0.0.5'), ('SLURM_NODELIST', 'node[1-4]'),
    ('MA_CURRENT_IP', '1.1.1.1'), ('VC_WORKER_HOSTS', 'a,b'), ('TORCH_X', 'https://inside/x'),
    ('SLURM_JOB_USER', 'me'), ('HF_PASSWORD', 'x'),
    ('SLURM_JWT_SECRET', 'x'), ('PYTHON_KEYRING_BACKEND', 'x')))
def test_values_of_secrets_and_addresses_are_hidden(name, value):
    assert variables({name: value}) == {name: HIDDEN}
    assert variables({name: ''}) == {name: ''}


def test_variables_of_a_run_are_shown_and_others_are_not():
    shown = {'ASCEND_RT_VISIBLE_DEVICES': '0,1', 'HCCL_CONNECT_TIMEOUT': '1800', 'TASK_QUEUE_ENABLE': '2', 'RANK': '0',
             'LOCAL_RANK': '1', 'WORLD_SIZE': '8', 'OMP_NUM_THREADS': '4', 'LD_LIBRARY_PATH': '/usr/local/Ascend/lib64',
             'TORCH_DEVICE_BACKEND_AUTOLOAD': '0', 'PYTORCH_NPU_ALLOC_CONF': 'expandable_segments:True'}
    others = {'AWS_SECRET_ACCESS_KEY': 'x', 'MAIL': 'me', 'HOSTNAME': 'h', 'SSH_CONNECTION': '1.2.3.4', 'PATH': '/bin',
              'OLDPWD': '/', 'RANKING': '1', 'MAKEFLAGS': 'x'}
    assert variables({**shown, **others}) == shown


def test_names_of_user_home_and_machine_are_not_shown(monkeypatch):
    monkeypatch.setattr(getpass, 'getuser', lambda: 'mei')
    monkeypatch.setattr(socket, 'gethostname', lambda: 'npu-server-7')
    cleaner = Cleaner({'HOME': '/home/mei', 'HF_TOKEN': 'hf_very_secret'})
    for value, expected in (
            ('3.11, /home/mei/.venv/bin/python', '3.11, ~/.venv/bin/python'), ('on npu-server-7', 'on <host>'),
            ('/data/mei/x', '/data/<user>/x'), ('hf_very_secret', '<secret>'), ('/home/meier', '/home/<user>')):
        assert hide_names('devices', value, cleaner) == expected
    assert hide_names('cann', '24.1.0.3', cleaner) == '24.1.0.3' and hide_names('versions', None, cleaner) is None
    assert hide_names('cann', '8.0 in /home/mei/Ascend', cleaner) == '8.0 in ~/Ascend'


def test_report_of_this_machine(monkeypatch):
    """Doctor's findings and the versions of a run, as text and as JSON; nothing is computed on a device."""
    monkeypatch.setattr(sys, 'executable', preloaded.python())
    report = doctor.examine(smoke_test=False)
    assert 'smoke test' not in {c.section for c in report.checks}
    monkeypatch.setattr(environment_report, 'examine', lambda smoke_test: report)
    monkeypatch.setenv('HF_TOKEN', 'hf_very_secret')
    facts = json.loads(run_here('env', '--json').stdout)
    assert list(facts) == ['versions', 'machine', 'cann', 'devices', 'data', 'variables', 'faults']
    assert facts['versions']['seresnet_timm'] == '0.1.0' and facts['versions']['pillow']
    assert facts['machine']['cores'] == str(os.cpu_count()) and facts['machine']['device'].startswith('cpu')
    text = run_here('env').stdout
    assert 'hf_very_secret' not in text and HIDDEN in text
    assert all(f'\n{section}\n' in f'\n{text}' for section in facts)


def test_the_issue_template_asks_for_it():
    import yaml
    template = yaml.safe_load((ROOT / '.github' / 'ISSUE_TEMPLATE' / 'bug_report.yml').read_text(encoding='utf-8'))
    fields = {field['id']: field for field in template['body'] if 'id' in field}
    assert {'name', 'description', 'body'} <= set(template)
    assert 'seresnet-timm env' in fields['env']['attributes']['description']
    assert fields['env']['validations']['required'] and fields['command']['validations']['required']
    assert (ROOT / 'SECURITY.md').is_file()
