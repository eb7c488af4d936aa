"""What a data folder holds, before a run: classes and images that count, faults, and what its owner may not expect."""
import gzip
import json
import os
import tarfile
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
from timm.data import ImageNetInfo

from seresnet_timm.launch.dataset import DataFacts, examine
from seresnet_timm.launch.outputs import decide_classes, name_outputs, name_outputs_of_hub
from seresnet_timm.runs.settings import RunSettings, Script

NFC, NFD = (unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD'))
CLASSES = ('ant/1.png', 'bee/1.png', 'cow/1.png')


def make(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b'')
    return root


def both(root: Path, *files: str) -> Path:
    """The same files in train and val."""
    return make(root, *(f'{split}/{file}' for split in ('train', 'val') for file in files))


def train(root, **args) -> DataFacts:
    return examine('train', dict(data_dir=str(root), train_split='train', val_split='validation', **args))


def validate(root, **args) -> DataFacts:
    return examine('validate', dict({'data_dir': str(root), 'split': 'validation'}, **args))


def pack(tar: Path, folder: Path) -> Path:
    with tarfile.open(tar, 'w') as file:
        for path in sorted(folder.iterdir()):
            file.add(path, arcname=path.name)
    return tar


# --- what is left out -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('foreign, named', (
    ('.ipynb_checkpoints/1-checkpoint.png', '.ipynb_checkpoints'),
    ('ant/@eaDir/1.png/SYNOPHOTO_THUMB_M.png', '@eaDir'),
    ('__MACOSX/ant/1.png', '__MACOSX'),
    ('$RECYCLE.BIN/zebra/1.png', 'RECYCLE'),
    ('lost+found/1.png', 'lost\\+found'),
    ('.Trash-1000/files/1.png', 'Trash'),
    ('ant/._1.png', '1 hidden file'),
    ('ant/.trashed-1.jpg', '1 hidden file'),
))
def test_folders_and_files_of_other_programs_are_left_out_and_told(tmp_path, foreign, named):
    facts = train(both(tmp_path, *CLASSES, foreign))
    assert facts.class_names == ['ant', 'bee', 'cow'] and facts.num_images == {'train': 3, 'val': 3}
    assert facts.problems == [] and len(facts.notes) == 2  # one a split
    import re
    assert all(re.search(named, note) and 'left out' in note for note in facts.notes)


def test_training_and_validation_on_one_split_are_told(tmp_path):
    both(tmp_path, *CLASSES)
    args = dict(data_dir=str(tmp_path), train_split='validation', val_split='val')
    assert [n for n in examine('train', args).notes if 'evaluated on its training images' in n]
    assert not [n for n in train(tmp_path).notes if 'evaluated' in n]


def test_a_class_map_says_what_counts(tmp_path):
    root = both(tmp_path / 'data', *CLASSES, '.net/1.png', 'ant/day/1.png', 'ant/day/2.png')
    path = tmp_path / 'map.txt'
    path.write_bytes('.net\r\ncow\r\nzebra\r\n\r\n'.encode('utf-16'))
    facts = train(root, class_map=str(path))
    assert facts.problems == [] and facts.class_names == ['.net', 'cow', 'zebra'] and facts.mapped
    assert facts.num_images == {'train': 2, 'val': 2}
    text = '\n'.join(facts.notes)
    assert "leaves out 3 folders with 4 images: 'ant', 'bee', 'day'" in text
    assert "1 name of --class-map without a folder with images: 'zebra'" in text
    path.write_text('Ant\nBee\n')
    assert 'names none of the folders with images in' in train(root, class_map=str(path)).problems[0]


# --- faults -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('files, problem', (
    (('ant/1.png', 'ant/extra/1.png', 'bee/1.png'), 'ant/extra has images and is inside of a class folder'),
    (('a/x/1.png', 'b/x/1.png', 'b/y/1.png'), "a/x, .*b/x would be one class 'x'"),
    (('Cat/1.png', 'cat/1.png'), 'order is undefined (.*Cat and cat'),
    (('1/1.png', '01/1.png'), 'order is undefined'),
    ((f'{NFC}/1.png', f'{NFD}/1.png'), 'has a class twice: .*NFD and NFC|has a class twice: .*NFC and NFD'),
    (('dog/1.png', 'dog /1.png'), 'has a class twice: .*white space'),
    (('hot dog/1.png', 'hot\xa0dog/1.png'), r'white space: U\+0020 and U\+00A0'),
    (('dog/1.png', 'do\u200bg/1.png'), r'nothing and U\+200B'),
    (('1.png', 'a/1.png'), 'outside the class folders'),
    (('a/1.png', 'b/notes.txt'), 'has no image in it'),
    (('²/1.png', 'a/1.png'), "cannot sort a class called '²'"),
    (('a/²/1.png', 'a/3/²'), 'cannot sort'),
))
def test_classes_that_are_not_what_their_owner_means(tmp_path, files, problem):
    """Each is refused in training and in an evaluation, and nothing else is."""
    import re
    for facts in (train(both(tmp_path, *files)), validate(tmp_path)):
        assert facts.problems and re.search(problem.replace('(', r'\(', problem.count('(.*')), facts.problems[0])


def test_letters_of_another_alphabet_are_told(tmp_path):
    facts = validate(both(tmp_path, 'cat/1.png', 'сat/1.png', 'dog/1.png'))
    assert facts.problems == [] and len(facts.class_names) == 3
    assert 'letters of another alphabet: U+0063 and U+0441' in facts.notes[0]


@pytest.mark.parametrize('train_name, val_name, told', (
    (NFC, NFD, 'Unicode normalization: NFC and NFD: U+00E9 and U+0065 U+0301'),
    ('Cat', 'cat', 'case: U+0043 and U+0063'),
    ('dog', 'dog ', 'white space: nothing and U+0020'),
    ('hot dog', 'hot\xa0dog', 'white space: U+0020 and U+00A0'),
    ('cat', 'сat', 'letters of another alphabet: U+0063 and U+0441'),
    ('dog', '\u200edog', 'nothing and U+200E'),
))
def test_names_of_train_and_val_that_look_alike(tmp_path, train_name, val_name, told):
    root = make(tmp_path, f'train/{train_name}/1.png', f'val/{val_name}/1.png', 'train/zoo/1.png', 'val/zoo/1.png')
    problem, = train(root).problems
    assert 'look alike' in problem and told in problem and str(root / 'val') in problem


def test_links(tmp_path):
    """A folder under two names, and training images among those of the validation."""
    root = both(tmp_path, *CLASSES)
    (root / 'val' / 'dog').symlink_to('cow')
    (root / 'train' / 'dog').symlink_to('cow')
    problems = train(root).problems
    assert len(problems) == 2 and all('are one folder, by a link' in p for p in problems)
    for split in ('train', 'val'):
        (root / split / 'dog').unlink()
    (root / 'val' / 'cow' / '1.png').unlink()
    (root / 'val' / 'cow').rmdir()
    (root / 'val' / 'cow').symlink_to('../train/cow')
    assert 'would be evaluated on its training images' in train(root).problems[0]
    assert validate(root).problems == []
    assert train(root, ).problems and not examine(
        'train', dict(data_dir=str(root), train_split='train', val_split='')).problems


def test_all_problems_at_once(tmp_path):
    root = make(tmp_path, 'train/a/1.png', 'train/b/x', 'train/1.png', 'val/a/1.png', 'val/a/c/1.png')
    text = '\n'.join(train(root).problems)
    assert 'train/1.png is outside' in text and 'train/b has no image' in text and 'val/a/c has images' in text


# --- tars and other readers -------------------------------------------------------------------------------------------

def test_a_tar_is_evaluated_and_never_trained_on_alone(tmp_path):
    root = both(tmp_path / 'data', *CLASSES)
    tar = pack(tmp_path / 'val.tar', root / 'val')
    assert validate(tar).class_names == ['ant', 'bee', 'cow'] and validate(tar).num_images == {'val': 3}
    problem, = train(tar).problems
    assert 'train and evaluate on the same images' in problem and '--train-split train.tar' in problem
    whole = pack(tmp_path / 'all.tar', root)
    assert "would be one class 'ant'" in validate(whole).problems[0]
    tars = tmp_path / 'tars'
    tars.mkdir()
    for split in ('train', 'val'):
        pack(tars / f'{split}.tar', root / split)
    problem, = train(tars).problems
    assert f'timm reads {tars}/train.tar with --train-split train.tar' in problem
    facts = examine('train', dict(data_dir=str(tars), train_split='train.tar', val_split='val.tar'))
    assert facts.problems == [] and facts.num_images == {'train': 3, 'val': 3}


def tar_of(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, 'w') as tar:
        for member in members:
            tar.addfile(member)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = '') -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, link
    return found


@pytest.mark.parametrize('more, named', (
    (member('ant/2.png', tarfile.LNKTYPE, 'ant/1.png'), 'ant/2.png'),
    (member('./ant/1.png'), './ant/1.png'),
    (member('cow/1.png', tarfile.SYMTYPE, '../x.png'), 'cow/1.png'),
    (member('cow', tarfile.SYMTYPE, '/data/cow'), 'cow'),
))
def test_links_and_files_that_are_twice_in_a_tar(tmp_path, more, named):
    """Unpacked it would have other images than timm counts."""
    problem, = validate(tar_of(tmp_path / 'a.tar', member('ant/1.png'), member('bee/1.png'), more)).problems
    assert 'images or folders that timm would leave out or count twice' in problem and f' (1): {named}.' in problem


def test_tars_of_which_python_reads_a_part_without_an_error(tmp_path):
    whole = tar_of(tmp_path / 'a.tar', *(member(f'{name}/1.png') for name in ('ant', 'bee', 'cow'))).read_bytes()
    damaged = bytearray(whole)
    damaged[512 + 150] ^= 1  # in the checksum of the second file
    for content, words in ((whole[:2 * 512], 'cut off'), (whole[:2 * 512 + 99], 'cut off'), (damaged, 'damaged'),
                           (whole * 2, 'several tars were joined'), (gzip.compress(whole), 'it is compressed')):
        (tmp_path / 'b.tar').write_bytes(content)
        problem, = validate(tmp_path / 'b.tar').problems
        assert 'b.tar cannot be read' in problem and words in problem
    odd = tar_of(tmp_path / 'c.tar', member('../ant/1.png'), member('/bee/1.png'))
    assert validate(odd).class_names == ['ant', 'bee']


def test_tars_that_are_not_read_are_told(tmp_path):
    root = both(tmp_path / 'data', *CLASSES)
    folder = tmp_path / 'tars'
    for split in ('train', 'val'):
        (folder / split).mkdir(parents=True)
        for name in ('ant', 'bee'):
            pack(folder / split / f'{name}.tar', root / split / name)
    assert all('ant.tar, are not read: unpack them' in p for p in train(folder).problems)
    (tmp_path / 'bad.tar').write_bytes(b'no tar at all')
    assert 'bad.tar cannot be read' in validate(tmp_path / 'bad.tar').problems[0]


@pytest.mark.parametrize('args, problem', (
    ({'dataset': 'cifar10'}, '--dataset torch/cifar10'),
    ({'dataset': 'tfsd/mnist'}, "timm has no reader 'tfsd', did you mean tfds?"),
    ({'dataset': 'torch/cifar11'}, 'did you mean cifar10'),
    ({'dataset': 'torch/image_folder', 'class_map': 'map.txt'}, '--class-map has no effect'),
    ({'dataset': 'torch/mnist', 'data_dir': 'nowhere'}, 'Dataset nowhere does not exist'),
    ({'dataset': 'wds/x', 'data_dir': ''}, 'name it with --data-dir'),
    ({'dataset': 'hfds/', 'data_dir': ''}, 'names no dataset'),
    ({'dataset': '', 'data_dir': ''}, 'give its root folder with --data-dir'),
))
def test_datasets_that_timm_does_not_read(tmp_path, monkeypatch, args, problem):
    monkeypatch.chdir(both(tmp_path, *CLASSES))
    Path('map.txt').write_text('ant\n')
    assert any(problem in p for p in validate('.', **args).problems)


def test_packages_of_readers(tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    for name, package in (('tfds/mnist', 'tensorflow-datasets'), ('hfids/a/b', 'datasets'), ('wds/x', 'webdataset')):
        assert any(f'pip install {package}' in p for p in validate(tmp_path, dataset=name).problems)


def test_any_other_dataset_name_is_a_folder(tmp_path):
    assert validate(both(tmp_path, *CLASSES), dataset='ImageFolder').class_names == ['ant', 'bee', 'cow']


# --- which folder -----------------------------------------------------------------------------------------------------

def test_a_split_as_the_root_and_a_folder_too_high(tmp_path):
    root = both(tmp_path / 'data', *CLASSES)
    assert f'--data-dir takes the folder above, {root}' in train(root / 'train').problems[0]
    assert "would be one class 'ant'" in validate(tmp_path).problems[0]  # train and val below it
    assert validate(root / 'val').class_names == ['ant', 'bee', 'cow']


def test_a_class_folder_whose_disk_is_gone(tmp_path):
    """A link to nothing where the classes are may have been one; beside images it is a file."""
    root = both(tmp_path, *CLASSES)
    (root / 'val' / 'ant' / 'notes').symlink_to('/nowhere/notes')
    assert validate(root).problems == []
    (root / 'val' / 'dog').symlink_to('/nowhere/dog')
    problem, = validate(root).problems
    assert 'val/dog is a link to what does not exist' in problem


def test_splits_under_other_names_are_named(tmp_path):
    for names in (('Train', 'Val'), ('train', 'test')):
        root = make(tmp_path / '-'.join(names), *(f'{split}/{file}' for split in names for file in CLASSES))
        for facts in (train(root), validate(root)):
            assert f'(it has {", ".join(sorted(names))})' in facts.problems[0]
    root = both(tmp_path / 'unpacked' / 'digits', *CLASSES)
    assert f'or give --data-dir {root}, which has one' in train(root.parent).problems[0]
    tiny = both(tmp_path / 'tiny', *(f'{name}/images/1.png' for name in ('ant', 'bee')))
    assert 'if the folders above them are the classes, move the images up' in validate(tiny).problems[0]


def test_one_class_and_subfolders_as_classes_are_told(tmp_path):
    assert "has one class ('ant')" in validate(both(tmp_path / 'one', 'ant/1.png')).notes[0]
    facts = train(both(tmp_path / 'days', 'ant/day1/1.png', 'ant/day2/1.png', 'bee/day3/1.png'))
    assert facts.class_names == ['day1', 'day2', 'day3'] and 'the last folder is the class' in facts.notes[0]
    sources = SimpleNamespace(asked=lambda *names: True, flags={'num_classes': 2}, reasons={}, notes=[])
    problem, = decide_classes('train', sources, {'num_classes': 2, 'model': 'resnet18'}, facts)
    assert 'has 3 classes, the model 2 outputs' in problem and 'day1' in problem
    assert os.path.join('ant', 'day2') in problem


# --- evaluation by name -----------------------------------------------------------------------------------------------

def sources_with(names):
    content = {'model_info': {'class_names': names}} if names else {}
    return SimpleNamespace(checkpoints={'a.pth.tar': SimpleNamespace(content=content, path='a.pth.tar')}, reasons={},
                           notes=[])


@pytest.mark.parametrize('trained, found, expected, note', (
    (['ant', 'bee', 'cow'], ['bee', 'cow'], ['ant', 'bee', 'cow'], "Without images: 'ant'"),
    (['cow', 'bee', 'ant'], ['ant', 'bee', 'cow'], ['cow', 'bee', 'ant'], 'not in that of the folders'),
    (['ant', 'bee', 'cow'], ['ant', 'bee', 'cow'], ['ant', 'bee', 'cow'], None),
    (['ant', 'bee', 'cow'], ['bee', 'zebra'], ['bee', 'zebra'], None),  # the checks refuse it
    (['ant', 'ant'], ['ant'], ['ant'], None),
    (None, ['ant'], ['ant'], None),
))
def test_an_evaluation_numbers_classes_as_the_training(trained, found, expected, note):
    sources = sources_with(trained)
    facts = name_outputs('validate', sources, {'model': 'resnet18', 'num_classes': 3}, DataFacts(found))
    assert facts.class_names == expected
    assert [n for n in sources.notes if note and note in n] if note else sources.notes == []
    assert name_outputs('train', sources, {}, DataFacts(found)).class_names == found


def test_a_class_map_cannot_give_an_output_the_name_of_another(tmp_path):
    """Ten classes of ImageNet in a map are not the first ten outputs."""
    wordnet = ImageNetInfo('imagenet-1k').label_names()
    args = {'model': 'resnet18', 'num_classes': 1000, 'data_dir': 'D'}
    for names, fault in ((wordnet[100:110], True), (wordnet, False), ([f'c{i}' for i in range(1000)], False)):
        sources = SimpleNamespace(checkpoints={}, reasons={}, notes=[])
        problems = name_outputs('validate', sources, args, DataFacts(names, mapped=True)).problems
        assert len(problems) == fault and all('list the folders in the order of its outputs' in p for p in problems)
    (tmp_path / 'config.json').write_text(json.dumps({
        'architecture': 'resnet18', 'label_names': ['cow', 'ant', 'bee']}))
    for names, fault in ((['cow', 'ant', 'bee'], False), (['ant', 'bee', 'cow'], True), (['cow', 'bee'], True),
                         (['cow', 'ameise'], False)):
        settings = RunSettings('validate', Script('validate.py'), {'model': 'hf-hub:a/b', 'class_map': 'm.txt'},
                               class_names=names, model_folder=str(tmp_path))
        assert bool(name_outputs_of_hub(settings)[1]) == fault


def test_valid_labels_and_imagenet(tmp_path):
    (tmp_path / 'labels.txt').write_bytes(b'\xef\xbb\xbf2\r\n0\r\n\r\n')
    args = {'model': 'resnet18', 'num_classes': 3, 'valid_labels': str(tmp_path / 'labels.txt')}
    facts = name_outputs('validate', sources_with(['ant', 'bee', 'cow']), args, DataFacts(['ant', 'cow']))
    assert facts.class_names == ['cow', 'ant']
    wordnet = ImageNetInfo('imagenet-1k').label_names()
    some = [wordnet[i] for i in (1, 500, 999)]
    for checkpoint in (sources_with(None), SimpleNamespace(checkpoints={}, reasons={}, notes=[])):
        facts = name_outputs('validate', checkpoint, {'model': 'resnet18', 'num_classes': 1000}, DataFacts(some))
        assert facts.class_names == wordnet and 'evaluated by name' in checkpoint.notes[0]


@pytest.mark.parametrize('names, found, expected, told', (
    (['cow', 'ant', 'bee'], ['ant', 'bee'], ['cow', 'ant', 'bee'], "Without images: 'cow'"),
    (['cow', 'ant'], ['ant', 'cow'], ['cow', 'ant'], 'in the order of the model'),
    (['cow', 'ant'], ['ant', 'zebra'], ['ant', 'zebra'], 'was trained with other classes'),
    (None, ['ant'], ['ant'], None),
))
def test_names_of_a_model_of_the_hub(tmp_path, names, found, expected, told):
    (tmp_path / 'config.json').write_text(json.dumps({
        'architecture': 'resnet18', **({'label_names': names} if names else {})}))
    settings = RunSettings('validate', Script('validate.py'), {'model': 'hf-hub:a/b', 'data_dir': 'D'},
                           class_names=found, model_folder=str(tmp_path))
    named, problems = name_outputs_of_hub(settings)
    assert named.class_names == expected
    assert [t for t in named.notes + problems if told in t] if told else not named.notes + problems
