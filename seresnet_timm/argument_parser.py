"""ArgumentParser whose errors are one sentence each, all of a command line at once; suggestions for unknown flags

Which values an argument takes is a rule of `engine/values.py`, which the parser is given.
"""
import argparse
import ast
import difflib
import functools
import math
import re
import sys
import textwrap
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from seresnet_timm.errors import UsageError, did_you_mean, printable, refuse

# what people write for a flag, from other programs and from habit: flag -> words, without their hyphens
MEANINGS: Dict[str, str] = {
    '--opt': 'optimizer optimiser optim',
    '--batch-size': 'batchsize bs batch trainbatchsize perdevicebatchsize imagesperbatch batchsizepergpu minibatch',
    '--validation-batch-size': 'valbatchsize evalbatchsize testbatchsize',
    '--lr': 'learningrate learnrate baselr initlr initiallr maxlr',
    '--warmup-lr': 'warmuplearningrate startlr',
    '--min-lr': 'minlearningrate finallr endlr etamin',
    '--nproc': 'gpus ngpus numgpus npus nnpus numnpus ngpu nprocpernode nprocs numproc numprocs processes numprocesses '
               'devices numdevices procs',
    '--nnodes': 'nodes numnodes',
    '--node-rank': 'noderank machinerank',
    '--workers': 'numworkers nworkers dataloadernumworkers loaderworkers threads numthreads nthreads jobs',
    '--data-dir': 'data datadir datapath dataset dataroot datasetdir datasetpath datasetroot datafolder datadirectory '
                  'root rootdir traindata traindir imagenet imagefolder dataurl',
    '--output': 'savedir savepath outputdir outputpath outdir outpath out logdir workdir checkpointdir checkpointpath '
                'ckptdir traindirout resultdir resultsdir resultpath modeldir rundir outputfile destination dest',
    '--experiment': 'name runname expname experimentname exp jobname',
    '--model': 'a arch architecture net network backbone modelname modelarch',
    '--img-size': 'imagesize imgsize imgsz size resolution cropsize inputresolution imsize trainsize',
    '--input-size': 'inputshape',
    '--num-classes': 'classes nclasses nbclasses numclass nclass numlabels classnum',
    '--epochs': 'numepochs nepochs maxepochs numtrainepochs totalepochs epoch',
    '--start-epoch': 'beginepoch startepochs',
    '--warmup-epochs': 'warmup warmupepoch numwarmupepochs warmupsteps',
    '--sched': 'scheduler schedule lrscheduler lrschedule lrpolicy lrsched',
    '--weight-decay': 'wd decay l2 weightdecay',
    '--smoothing': 'labelsmoothing labelsmooth ls smooth',
    '--drop': 'dropout droprate dropoutrate',
    '--drop-path': 'droppathrate stochasticdepth dpr',
    '--aa': 'autoaugment randaugment randaug augment augmentation autoaug augmix',
    '--reprob': 'randomerasing randomerase erasing erasingprob reprobability',
    '--mixup': 'mixupalpha',
    '--cutmix': 'cutmixalpha',
    '--hflip': 'horizontalflip flip',
    '--color-jitter': 'colourjitter jitter',
    '--clip-grad': 'gradclip clip clipgradnorm maxgradnorm gradientclip gradientclipping gradclipnorm clipnorm',
    '--grad-accum-steps': 'gradientaccumulationsteps accumulationsteps accumsteps accum gradaccum '
                          'accumulategradbatches gradaccumulation updatefreq iterstoaccumulate',
    '--grad-checkpointing': 'gradientcheckpointing activationcheckpointing usecheckpoint',
    '--amp': 'fp16 half nativeamp mixedprecision useamp bf16 bfloat16 precision autocast',
    '--model-ema': 'ema useema emadecay',
    '--use-ema': 'ema',
    '--resume': 'resumefrom continue loadcheckpoint continuefrom',
    '--pretrained-path': 'pretrainedmodel pretrainedweights pretrainedcheckpoint finetune finetunefrom',
    '--initial-checkpoint': 'weights loadfrom load init initweights loadweights ckpt checkpoint',
    '--checkpoint': 'weights ckpt loadfrom load modelpath resumefrom pretrainedmodel pth checkpointpath',
    '--pretrained': 'usepretrained imagenetweights',
    '--config': 'configfile cfg conf yaml configpath',
    '--log-interval': 'logevery printevery logfreq logfrequency loggingsteps loginterval displayinterval disp',
    '--log-freq': 'logevery printevery loginterval logfrequency',
    '--val-interval': 'evalinterval evalevery valfreq evalfreq validateevery evaluationinterval',
    '--checkpoint-hist': 'savetotallimit keep keepcheckpoints savefreq',
    '--seed': 'randomseed manualseed rngseed',
    '--evaluate': 'eval evalonly testonly validateonly test onlyeval validate',
    '--train-interpolation': 'traininterp',
    '--interpolation': 'interp resample',
    '--sync-bn': 'syncbatchnorm syncbn',
    '--torchcompile': 'compile torchcompile',
    '--channels-last': 'nhwc memoryformat',
    '--in-chans': 'channels inputchannels inchannels numchannels chans',
    '--gp': 'globalpool pooling pool',
    '--master-addr': 'masteraddress host masterip masterhost',
    '--master-port': 'port',
    '--crop-pct': 'croppct centercrop cropratio',
    '--no-aug': 'noaugmentation noaugment',
    '--topk': 'k top numtop',
    '--dry-run': 'check noop simulate',
    '--device': 'accelerator npu npuid cuda',
}
SIMILAR = 0.65  # of a flag that is suggested for a misspelt one
KINDS = {int: 'a whole number', float: 'a number'}
WRONG = object()  # stands for a value that is refused, until all are known

HELP_FLAGS = frozenset(('-h', '--help'))


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser. Its errors are sentences, and all of a command line are found at once.

    Attributes:
        rules: The rules for the values of its arguments, by their `dest`, as in `engine/values.py`.
        looks_for_files: Files and folders that must be there are looked for, and contradictions.
        find_contradictions: Gives the sentences on arguments that do not go together.
        examples: Command lines with which its help begins.
        next_steps: Command lines, or sentences, with which its help ends.
    """
    rules: Mapping[str, Any] = {}
    looks_for_files = False
    find_contradictions: Callable[[argparse.Namespace], Iterable[str]] = staticmethod(lambda args: ())
    examples: Sequence[str] = ()
    next_steps: Sequence[str] = ()

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{'formatter_class': HelpFormatter, **kwargs})

    def format_help(self) -> str:
        return guide(super().format_help(), self.examples, self.next_steps)

    def error(self, message: str):
        raise UsageError(f'{message[:1].upper()}{message[1:]}{_meant(message, self.flags())}.'.replace('?.', '?'))

    def parse_known_args(self, args=None, namespace=None):
        is_last = not any(isinstance(a, argparse._SubParsersAction) for a in self._actions)
        if args is not None and is_last and self.prefix_chars == '-':
            args = with_known_spelling(args, self._option_string_actions)
        return super().parse_known_args(args, namespace)

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        typed = list(sys.argv[1:] if args is None else args)
        args, unknown, is_clear = typed, [], True
        if all(parser.prefix_chars == '-' for parser in self.parsers()):
            args, unknown, is_clear = without_unknown_flags(typed, self._actions_by_flag())
        said = unknown_flag_messages(self.flags(), unknown)
        actions = [action for parser in self.parsers() for action in parser._actions]
        if not is_clear:  # so that it is not known which words are the other arguments
            actions = [action for action in actions if action.option_strings]
        with collected_problems(actions, self.rules) as problems:
            try:
                namespace, rest = self.parse_known_args(args, namespace)
            except UsageError as e:  # argparse cannot go on
                # what it misses may be one of the words that were taken for values of unknown flags
                said += [str(e)] if is_clear and len(typed) == len(args) + len(unknown) else []
                refuse(with_typed_names([*problems, *said], abbreviations(typed, self.flags())))
        problems += said + (unknown_flag_messages(self.flags(), rest) if is_clear else [])
        problems += wrong_lists(actions, self.rules, vars(namespace))
        if self.looks_for_files:
            problems += wrong_names('missing', actions, self.rules, vars(namespace))
            problems += self.find_contradictions(_without_wrong(actions, namespace)) if is_clear else []
        if problems:
            problems += wrong_names('likely_wrong', actions, self.rules, vars(namespace))
        refuse(with_typed_names(problems, abbreviations(typed, self.flags())))
        return namespace

    def flags(self) -> List[str]:
        """Every flag of this parser and of its sub-parsers."""
        return list(dict.fromkeys(flag for parser in self.parsers() for flag in parser._option_string_actions))

    def _actions_by_flag(self) -> Dict[str, argparse.Action]:
        return {flag: action for parser in self.parsers() for flag, action in parser._option_string_actions.items()}

    def parsers(self) -> Iterator['ArgumentParser']:
        """This parser and its sub-parsers."""
        yield self
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser.parsers()

    def leave_unparsed(self) -> None:
        """Store all arguments as they are in `argv`, flags and --help too, for another parser."""
        self.prefix_chars = '\0'  # no argument starts with it, so argparse takes none for a flag
        self.add_argument('argv', nargs=argparse.REMAINDER)


def guide(text: str, examples: Sequence[str], next_steps: Sequence[str]) -> str:
    """The help of a command, with examples before it and the next steps after it."""
    before, after = (
        f'{title}:\n' + ''.join(f'  {line}\n' for line in lines) if lines else ''
        for title, lines in (('Examples' if len(examples) > 1 else 'Example', examples), ('Next', next_steps)))
    return '\n'.join(part for part in (before, text, after) if part)


class HelpFormatter(argparse.HelpFormatter):
    """Adds the default of a flag to its help, unless the text has it, or there is none; breaks no flag at a hyphen."""

    def _split_lines(self, text: str, width: int) -> List[str]:
        return textwrap.wrap(' '.join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.indent('\n'.join(self._split_lines(text, width - len(indent))), indent)

    def _get_help_string(self, action: argparse.Action) -> Optional[str]:
        text = action.help
        has_default = action.option_strings and action.nargs != 0 and not isinstance(action.default, (bool, dict))
        if not text or not has_default or action.default in (None, '', [], argparse.SUPPRESS):
            return text
        default = in_words(action.default).replace('%', '%%')
        if re.search(r'%\(default\)|\bdefault: ', text):
            return text
        return f'{text} (default: {default})'


def in_words(value: Any) -> str:
    """A default as it is typed."""
    if isinstance(value, bool):
        return 'on' if value else 'off'
    if isinstance(value, (list, tuple)):
        return ' '.join(map(in_words, value)) or 'none'
    return 'none' if value in (None, '', {}) else f'{value:g}' if isinstance(value, float) else str(value)


class KeyValues(argparse.Action):
    """`--opt-kwargs a=1 b=text` as a dict; values are Python literals, else strings."""

    def __call__(self, parser, namespace, values, option_string=None):
        result = {}
        for item in values:
            key, equals, value = item.partition('=')
            if not equals or not key:
                parser.error(f"{option_string} takes key=value pairs, got '{item}'")
            try:
                result[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                result[key] = value
        setattr(namespace, self.dest, result)


# --- values -----------------------------------------------------------------------------------------------------------

@contextmanager
def collected_problems(actions: Sequence[argparse.Action], rules: Mapping[str, Any]) -> Iterator[List[str]]:
    """Sentences on the wrong values that a parser meets, instead of an error at the first; each becomes `WRONG`."""
    problems: List[str] = []
    changed = [a for a in actions if a.nargs != 0 and not isinstance(a, argparse._SubParsersAction)]
    own = [(action, action.type, action.choices) for action in changed]
    for action, kind, choices in own:
        action.type = functools.partial(_read, action, kind or str, choices, rules.get(action.dest), problems)
        action.choices = None
    try:
        yield problems
    finally:
        for action, kind, choices in own:
            action.type, action.choices = kind, choices


def _read(
        action: argparse.Action, kind: Callable, choices: Any, rule: Any, problems: List[str], text: str) -> Any:
    if text == action.default:
        return text  # argparse reads default texts too
    try:
        value = kind(text)
    except (argparse.ArgumentTypeError, TypeError, ValueError):
        advice = f': give {rule.advice()}' if hasattr(rule, 'advice') else ''
        problems.append(sentence(action, f"'{text}'", f'is not {KINDS.get(kind, kind.__name__)}{advice}'))
        return WRONG
    value, reason = checked(value, rule, choices)
    if reason:
        problems.append(sentence(action, text, reason))
        return WRONG
    return value


def checked(value: Any, rule: Any, choices: Any = None) -> Any:
    """A value as its rule reads it, and why it is wrong, if it is."""
    if choices is not None and value not in choices:
        return value, f'is unknown: {did_you_mean(str(value), [str(c) for c in choices if c != ""])}'
    if rule is not None:
        value = rule.read(value)
        return value, rule.wrong(value)
    if isinstance(value, float) and not math.isfinite(value):
        return value, 'is not a finite number'
    return value, None


def wrong_lists(
        actions: Sequence[argparse.Action], rules: Mapping[str, Any], values: Mapping[str, Any]) -> List[str]:
    """The sentences on lists whose items are right, but not together."""
    found = []
    for action in actions:
        values_of, rule = values.get(action.dest), rules.get(action.dest)
        if rule is not None and isinstance(values_of, (list, tuple)) and WRONG not in values_of:
            reason = rule.wrong_list(values_of)
            if reason:
                found.append(sentence(action, ' '.join(map(str, values_of)), reason))
    return found


def wrong_names(
        judge: str, actions: Sequence[argparse.Action], rules: Mapping[str, Any],
        values: Mapping[str, Any]) -> List[str]:
    """The sentences on values that a method of their rule finds wrong: 'missing' or 'likely_wrong'."""
    found = []
    for action in actions:
        given, rule = values.get(action.dest), rules.get(action.dest)
        for value in given if isinstance(given, list) else [given]:
            is_text = rule is not None and isinstance(value, str) and value != action.default
            reason = getattr(rule, judge)(value) if is_text else None
            found += [sentence(action, value, reason)] if reason else []
    return found


def _without_wrong(actions: Sequence[argparse.Action], namespace: argparse.Namespace) -> argparse.Namespace:
    """Arguments with the defaults in the place of wrong values."""
    result = argparse.Namespace(**vars(namespace))
    for action in actions:
        value = getattr(result, action.dest, None)
        if value is WRONG:
            setattr(result, action.dest, action.default)
        elif isinstance(value, list):
            setattr(result, action.dest, [item for item in value if item is not WRONG])
    return result


def sentence(action: argparse.Action, value: Any, reason: str) -> str:
    """The sentence on a wrong value of an argument."""
    name = next((s for s in action.option_strings if s.startswith('--')), None)
    name = name or action.option_strings and action.option_strings[0] or action.metavar or action.dest
    return f"{name} {printable(value) or repr('')} {reason.rstrip('.')}{'' if reason.endswith('?') else '.'}"


# --- flags ------------------------------------------------------------------------------------------------------------

def with_known_spelling(args: Sequence[str], known: Mapping[str, Any]) -> List[str]:
    """Arguments whose flags have the known one of `-` and `_` between their words."""
    result = []
    for i, arg in enumerate(args):
        if arg == '--':
            return result + list(args[i:])
        name, equals, value = arg.partition('=')
        if re.fullmatch(r'--[A-Za-z0-9][\w-]*', name) and name not in known:
            spellings = ('--' + name[2:].replace('_', '-'), '--' + name[2:].replace('-', '_'))
            name = next((s for s in spellings if s in known), name)
        result.append(name + equals + value)
    return result


def abbreviations(args: Sequence[str], known: Sequence[str]) -> Dict[str, str]:
    """The abbreviated flags of a command line, by the flag that argparse takes each for."""
    result = {}
    for arg in args[:list(args).index('--') if '--' in args else None]:
        name = arg.partition('=')[0]
        meant = [f for f in known if f.startswith(name)] if re.match(r'--[A-Za-z0-9]', name) else []
        if len(meant) == 1 and meant[0] != name:
            result[meant[0]] = name
    return result


def with_typed_names(sentences: Sequence[str], typed: Mapping[str, str]) -> List[str]:
    """Sentences whose first mention of a flag that was abbreviated has what was typed before it."""
    result = []
    for text in sentences:
        for flag, name in typed.items():
            text = re.sub(rf'(?<![\w/.-]){re.escape(flag)}(?![\w-])', f'{name} ({flag})', text, count=1)
        result.append(text)
    return result


def without_unknown_flags(
        args: Sequence[str], known: Mapping[str, argparse.Action]) -> Tuple[List[str], List[str], bool]:
    """Arguments without unknown flags and their values, as argparse would take these for other arguments.

    Args:
        args: Command line.
        known: What belongs to each flag.

    Returns:
        The other arguments; names of the unknown flags; False if it is not clear which words are values of these. A
        flag takes as many as the one that was meant.
    """
    flags, result, unknown = list(known), [], []
    is_clear, values = True, 0.  # that are still to come
    for i, arg in enumerate(args):
        if arg == '--':
            result += args[i:]
            break
        name, equals, _ = arg.partition('=')
        if _is_unknown_flag(name, known):
            unknown.append(name)
            meant = known.get(nearest_flag(name, flags) or '')
            values = 0 if equals or meant is None else _most_values(meant)
            is_clear = is_clear and bool(equals or meant or _is_flag(next(iter(args[i + 1:]), '--')))
        elif values and not _is_flag(arg):
            values -= 1
        else:
            values = 0
            result.append(arg)
    return result, unknown, is_clear


def _is_flag(arg: str) -> bool:
    return bool(re.match(r'--$|-{1,2}[A-Za-z]', arg))


def _is_unknown_flag(name: str, known: Mapping[str, argparse.Action]) -> bool:
    if not _is_flag(name) or ' ' in name or name[:2] != '--' and name[:2] in known:  # `-b32`
        return False
    return not any(flag.startswith(with_known_spelling([name], known)[0]) for flag in known)


def _most_values(action: argparse.Action) -> float:
    return 1 if action.nargs in (None, '?') else action.nargs if isinstance(action.nargs, int) else math.inf


def unknown_flags_with_spaces(args: Sequence[str], known: Sequence[str]) -> List[str]:
    """Unknown flags whose value has a space in it: argparse takes them for other arguments."""
    names = [arg.partition('=')[0] for arg in args[:args.index('--') if '--' in args else None] if ' ' in arg]
    return [n for n in names if re.fullmatch(r'--[A-Za-z0-9][\w-]*', n) and not any(f.startswith(n) for f in known)]


def unknown_flag_messages(flags: Sequence[str], unknown: Sequence[str]) -> List[str]:
    """A sentence on every flag that a parser did not recognise; on the first argument, if there is no flag."""
    names = list(dict.fromkeys(u.split('=')[0] for u in unknown if re.match('-+[A-Za-z]', u)))
    if unknown and not names:
        return [f"Unexpected argument '{printable(unknown[0])}': --help lists the flags."]
    return [unknown_flag_message(flags, name) for name in names]


def unknown_flag_message(flags: Sequence[str], name: str) -> str:
    nearest = nearest_flag(name, [flag for flag in flags if flag != name])  # a flag of another verb or word
    hint = f'did you mean {nearest}?' if nearest else '--help lists the flags.'
    return f"Unknown flag '{printable(name)}': {hint}"


def _meant(message: str, flags: Sequence[str]) -> str:
    """The end of argparse's sentence on an abbreviation of several flags, where one of them is meant."""
    match = re.match(r'ambiguous option: (--[\w-]+)', message)
    flag = match and _by_meaning(_letters(match[1]), flags)
    return f'; did you mean {flag}?' if flag else ''


def nearest_flag(name: str, flags: Sequence[str]) -> Optional[str]:
    """The flag that was meant: by its letters, by its meaning, else a similar one."""
    # timm's names, which have hyphens, come before the ModelZoo's
    by_letters = {_letters(f): f for f in sorted(flags, key=lambda f: '_' not in f) if f.startswith('--')}
    letters = _letters(name)
    if letters in by_letters:
        return by_letters[letters]
    close = difflib.get_close_matches(letters, by_letters, n=1, cutoff=SIMILAR)
    return _by_meaning(letters, flags) or (by_letters[close[0]] if close else None)


def _by_meaning(letters: str, flags: Sequence[str]) -> Optional[str]:
    return next((f for f, words in MEANINGS.items() if letters in words.split() and f in flags), None)


def _letters(flag: str) -> str:
    return re.sub('[-_]', '', flag).lower()
