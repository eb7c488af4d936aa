"""NPU-hours by the formula, in the list, in the headers and on the pages."""
import json
import re

import pytest
import yaml
from conftest import ROOT, run_here

from seresnet_timm.launch import recipe_costs
from seresnet_timm.launch.recipes import Recipe, all_recipes, header

RECIPES = all_recipes()
IMAGENET = [n for n, r in RECIPES.items() if recipe_costs.cost_of(r)]


def test_the_references_cost_is_that_of_its_published_rate():
    """100 epochs at 5,306.66 images/s on 8 devices: 6.7 hours of 8 devices."""
    hours = recipe_costs.cost_of(RECIPES['seresnet50_ascend']).hours
    assert hours['Ascend ModelZoo, torch 1.8'] == pytest.approx(8 * 100 * 1281167 / 5306.66 / 3600)
    assert hours['Ascend ModelZoo, torch 1.8'] / 8 == pytest.approx(6.7, abs=0.01)
    assert hours['MindSpore model zoo'] == pytest.approx(8 * 100 * 1281167 / 10400 / 3600)


@pytest.mark.parametrize('settings, factor', (
    ({}, 1), (dict(img_size=160), (160 / 224) ** 2), (dict(epochs=50), 0.5),
    (dict(epochs=95, warmup_epochs=5, warmup_prefix=True), 1), (dict(warmup_epochs=5), 1),
    (dict(train_img_sizes=[112, 224]), (0.25 + 1) / 2)))
def test_sizes_and_epochs(settings, factor):
    base = dict(num_classes=1000, epochs=100)
    one, other = (recipe_costs.cost_of(Recipe('x', s)).hours for s in (base, {**base, **settings}))
    assert {k: v / one[k] for k, v in other.items()} == pytest.approx(dict.fromkeys(one, factor))


def test_a_teacher_adds_its_forward_pass():
    """A training step is three passes of the student: forward, and twice as much backward."""
    settings = dict(num_classes=1000, epochs=100)
    one, other = (recipe_costs.cost_of(Recipe('x', settings, teacher_gmacs=g)).hours for g in (0., 3 * 4.09))
    assert all(other[k] == pytest.approx(2 * one[k]) for k in one)


@pytest.mark.parametrize('settings, verb', (
    (dict(num_classes=10), None), ({}, None), (dict(num_classes=1000), 'validate')))
def test_what_is_no_training_on_imagenet_has_no_cost(settings, verb):
    assert recipe_costs.cost_of(Recipe('x', settings, verb=verb)) is None


@pytest.mark.parametrize('name', [n for n in IMAGENET if 'train_' not in n])
def test_header(name):
    """Source, command, published and expected result, ours, and the cost that the code computes."""
    text, recipe = header(name), RECIPES[name]
    for word in ('Source:', 'Command:', 'Published:', 'Ours:', 'Expected:', 'Batch:', f'--preset {name} '):
        assert word in text, word
    cost = recipe_costs.describe(recipe_costs.cost_of(recipe))
    assert re.search(r'^Cost: +(.*) NPU-hours, computed', text, re.M)[1] == cost
    assert re.search(r'not (yet )?measured', ' '.join(text.split())) and not recipe.measured
    number = re.match(r'[\d.]+', recipe.published)
    assert number is None or f'{number[0]} %' in text


def test_list():
    text = run_here('recipes').stdout
    for name, recipe in RECIPES.items():
        line, = (x for x in text.splitlines() if x.startswith(f'  {name} '))
        if name in IMAGENET:
            assert recipe_costs.describe(recipe_costs.cost_of(recipe)) in line and 'not measured' in line
            assert recipe.expected in line
    assert recipe_costs.FORMULA in text and '5,307' in text and '10,400' in text


def test_one():
    text = run_here('recipes', 'rsb_a2.yaml').stdout
    assert header('rsb_a2') in text and 'NPU-hours: 161 at the rate of Ascend ModelZoo' in text
    shown = yaml.safe_load(text.partition("Settings, by timm's names:\n")[2].partition('\nFile: ')[0])
    assert shown == RECIPES['rsb_a2'].settings and 'recipe:' not in text
    assert text == run_here('recipes', 'rsb_a2').stdout


def test_json():
    data = json.loads(run_here('recipes', '--json').stdout)
    assert [r['name'] for r in data['recipes']] == list(RECIPES)
    one, = json.loads(run_here('recipes', 'rsb_a3', '--json').stdout)['recipes']
    assert one['img_size'] == [160] and one['global_batch_size'] == 2048 and one['measured'] is None
    assert one['npu_hours'] == pytest.approx(recipe_costs.cost_of(RECIPES['rsb_a3']).hours)
    assert one['settings'] == RECIPES['rsb_a3'].settings


@pytest.mark.parametrize('name, nearest', (
    ('rsb_a4', 'rsb_a'), ('mindvc', 'mindcv'), ('torchvision', 'torchvision_v2'), ('MindCV', 'mindcv')))
def test_wrong_names_get_the_nearest(name, nearest):
    for argv in (('recipes', name), ('train', '--preset', name, '--data-dir', 'x')):
        result = run_here(*argv)
        assert result.returncode == 2 and f'did you mean {nearest}' in result.stderr, result.stderr


@pytest.mark.parametrize('page', ('recipes.md', 'zh-CN/recipes.md'))
def test_table_of_the_page(page):
    text = (ROOT / 'docs' / page).read_text(encoding='utf-8').replace(' 至 ', ' to ')
    rows = {m[1]: m[0] for m in re.finditer(r'^\| `(\w+)` .*$', text, re.M)}
    assert set(rows) == {n for n, r in RECIPES.items() if r.verb is None}
    for name, row in rows.items():
        cells = [c.strip() for c in row.strip('|').split('|')]
        cost = recipe_costs.cost_of(RECIPES[name])
        assert cells[2] == str(RECIPES[name].num_epochs) and cells[4] == (recipe_costs.describe(cost) or '-')
        assert RECIPES[name].global_batch_size in (None, int(re.sub(r'\D', '', cells[3]) or 0))


def test_the_other_verb_names_the_way(tmp_path):
    result = run_here('recipe', 'mindcv', f'--data_path={tmp_path}')
    assert result.returncode == 2 and 'seresnet-timm train --preset mindcv' in result.stderr
