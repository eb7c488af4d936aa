"""Which settings of a network are taken from a file that was only named

A checkpoint, the metadata of safetensors, run.json and the config.json of a Hub repository may come from a stranger.
timm passes every keyword argument on, and some of them read files, fetch addresses, write caches or take all memory
(`pretrained_cfg_overlay`, `pretrained_cfg`, `cache_dir`, `checkpoint_path`, `file`, `url` ...). So only the names
listed here are taken, with plain values within limits; everything else is refused by name. What the user types on the
command line is not checked here.
"""
import math
import re
import reprlib
from typing import Any, Dict, Iterable, Optional

from seresnet_timm.errors import UsageError, printable

# numbers of things that cost time when a network is made: blocks, heads, groups
COUNTS = frozenset("""
    layers depth depths serial_depths parallel_depth depth_list num_blocks num_blocks_list stages levels num_levels
    transformer_depths depth_token_only global_block_counts num_heads heads num_kv_heads num_heads_inner
    num_heads_outer attn_pool_num_heads num_vit groups group cardinality reg_tokens num_reg_tokens cls_attn_layers
    num_rnn_layers block_config
""".split())
# numbers of channels, pixels and classes
SIZES = frozenset("""
    num_classes in_chans img_size channels stem_width stem_chs stem_size stem_hidden_dim base_width width widths
    width_list head_widths embed_dim embed_dims dim dims base_dim base_dims hidden_sizes hidden_size head_hidden_size
    num_features feature_dim out_features head_dim key_dim qk_dim partial_dim state_dim inner_dim rel_pos_dim
    init_channels initial_chs final_chs inplanes neck_chans num_init_features growth_rate growth_rates bn_size reduction
    intermediate_size position_embedding_size pos_embed_grid_size
    patch_size patch_sizes window_size window_sizes pretrained_window_sizes kernel_size kernel_sizes stem_kernel_size
    down_kernel_size downsample_kernel_size down_patch_size pool_size output_stride stem_stride stride strides
    down_stride first_stride q_stride patch_kernel patch_stride patch_padding mask_unit_size global_pos_size
    global_attn_indexes merge_size ref_feat_shape swiglu_align_to block_reduce_first
    channel_divisor ch_div
""".split())
# rates, ratios, scales and other numbers that decide what is computed, not how much
NUMBERS = frozenset("""
    drop_rate drop_path_rate drop_block_rate drop_block_size proj_drop_rate attn_drop_rate pos_drop_rate patch_drop_rate
    bn_eps bn_momentum norm_eps init_values ls_init_value layer_scale layer_scale_init_value layer_scale_init_values
    res_scale_init_values layerscale_value head_init_scale mlp_ratio mlp_ratios mlp_ratio_token_only attn_ratio
    attn_mlp_ratio attn_pool_mlp_ratio expand_ratio se_ratio rd_ratio bottle_ratio sr_ratios width_factor width_mult
    depth_mult channel_multiplier depth_multiplier deepen_factor widen_factor scale expansion_ratio
    rope_temperature rope_theta rope_grid_offset window_ratio mix_block_ratio eta img_scale
""".split())
SWITCHES = frozenset("""
    zero_init_last qkv_bias qk_norm proj_bias conv_bias mlp_bias bias head_bias head_norm head_norm_first final_norm
    use_fc_norm fc_norm pre_norm class_token no_embed_class pool_include_prefix dynamic_img_size dynamic_img_pad
    strict_img_size always_partition use_abs_pos_emb use_rel_pos_bias use_shared_rel_pos_bias use_rot_pos_emb
    use_pos_embed use_rope use_abs_pos use_rel_pos swiglu_mlp scale_mlp scale_attn_norm scale_mlp_norm use_post_norm
    conv_mlp use_grn avg_down replace_stem_pool aa_stem_only preact basic legacy distillation distilled shortcut_root
    patch_norm ffn use_layer_scale use_mlp_head se_from_exp bn_tf fix_init fix_stem aux_logits with_fc bidirectional
    vit_stem input_3x3 memory_efficient inference_mode
""".split())
# names that timm looks up in a table of its own: never a file, a module or an address
WORDS = frozenset("""
    global_pool stem_type act_layer norm_layer aa_layer pad_type weight_init pos_embed pool_type attn_type rope_type
    downsample version fc_act_layer dw_act_layer rel_pos_type
""".split())

MAX_COUNT = 256  # making a network of four times as many blocks takes seconds
MAX_SIZE = 65536
MAX_CLASSES = 1_000_000
MAX_ITEMS = 64  # of a list
MAX_TEXT = 1000  # characters of a class name
_WORD = re.compile(r'[A-Za-z0-9_.+-]{0,40}')
_ARCHITECTURE = re.compile(r'[A-Za-z0-9_]+(\.[A-Za-z0-9_.-]+)?')
_HUB_PART = r'[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?'
_HUB_MODEL = re.compile(rf'{_HUB_PART}/{_HUB_PART}(@{_HUB_PART}(/{_HUB_PART})*)?')


def trusted_kwargs(kwargs: Any, origin: str, key: str = 'model_kwargs') -> Dict[str, Any]:
    """Arguments of a network from a file that was only named: known names with plain values, else refused.

    Args:
        kwargs: As the file has them.
        origin: The file, for messages.
        key: Where in the file they are, for messages.

    Returns:
        A copy; arguments that are None are left out, tuples are lists.

    Raises:
        UsageError: An argument is not one of those that may come from a file, or its value is not plain or too large.
    """
    if kwargs is None:
        return {}
    if not isinstance(kwargs, dict):
        raise UsageError(f'{printable(origin)}: {key} is a {type(kwargs).__name__}, not a table of arguments: the file '
                         'is damaged.')
    result = {}
    for name, value in kwargs.items():
        reason = why_untrusted(name, value)
        if reason:
            raise UsageError(f'{printable(origin)}: {key} has {_quoted(name)}, which {reason}: it is not taken from a '
                             'file.')
        if value is not None:
            result[name] = list(value) if isinstance(value, tuple) else value
    return result


def why_untrusted(name: Any, value: Any) -> Optional[str]:
    """Why an argument is not taken from a file, as the end of a sentence; None if it is.

    A run can check the arguments that were typed: with a refused one, its checkpoints cannot be used later.
    """
    if name in COUNTS:
        return _why_not_numbers(value, MAX_COUNT)
    if name in ('num_classes', 'in_chans'):
        return _why_not_numbers(value, MAX_CLASSES if name == 'num_classes' else MAX_SIZE)
    if name in SIZES:
        return _why_not_numbers(value, MAX_SIZE)
    if name in NUMBERS:
        return _why_not_numbers(value, 1e6)
    if name in SWITCHES:
        return None if value is None or isinstance(value, bool) else 'is not true or false'
    if name in WORDS:
        if value is None or value is False or isinstance(value, str) and _WORD.fullmatch(value):
            return None
        return 'is not a short word'
    return "is not one of a network's plain settings"


def trusted_name(name: Any, origin: str, key: str = 'model') -> str:
    """The name of a network from a file: an architecture, or `hf-hub:org/name@revision`; never a path.

    Raises:
        UsageError: It is something else.
    """
    if isinstance(name, str) and len(name) <= 200:
        source, colon, rest = name.partition(':')
        if not colon and _ARCHITECTURE.fullmatch(name):
            return name
        if colon and source in ('hf-hub', 'hf_hub') and is_hub_model(rest):
            return name
    raise UsageError(f'{printable(origin)}: {key} {_quoted(name)} is not the name of an architecture or of a model on '
                     'the Hub: name it with --model.')


def is_hub_model(name: str) -> bool:
    """True for 'org/name' and 'org/name@revision', in which no part can lead out of a folder."""
    return _HUB_MODEL.fullmatch(name) is not None and '..' not in name


def trusted_numbers(
        value: Any,
        origin: str,
        key: str,
        low: float,
        high: float,
        length: Optional[Iterable[int]] = None,
        whole: bool = False,
) -> Any:
    """A number, or with `length` a list of numbers, from a file; None stays None.

    Args:
        value: As the file has it.
        origin: The file, for messages.
        key: Its key, for messages.
        low: Smallest number.
        high: Largest number.
        length: Lengths that a list may have; None for a single number.
        whole: Integers only.

    Raises:
        UsageError: It is something else.
    """
    if value is None:
        return None
    kinds = int if whole else (int, float)
    numbers = list(value) if length is not None and isinstance(value, (list, tuple)) else [value]
    fits = length is None or isinstance(value, (list, tuple)) and len(numbers) in length
    if not fits or not all(
            isinstance(n, kinds) and not isinstance(n, bool) and math.isfinite(n) and low <= n <= high
            for n in numbers):
        what = 'whole number' if whole else 'number'
        wanted = f'a {what}' if length is None else f'{" or ".join(map(str, length))} {what}s'
        raise UsageError(f'{printable(origin)}: {key} is {_quoted(value)}, not {wanted} from {low:g} to {high:g}: the '
                         'file is damaged.')
    return numbers if length is not None else value


def trusted_word(value: Any, origin: str, key: str, known: Iterable[str]) -> Optional[str]:
    """One of some known words from a file; None stays None."""
    known = list(known)
    if value is None or isinstance(value, str) and value in known:
        return value
    raise UsageError(f'{printable(origin)}: {key} is {_quoted(value)}, not one of {", ".join(known)}: the file is '
                     'damaged.')


def _why_not_numbers(value: Any, high: float) -> Optional[str]:
    if value is None or isinstance(value, bool):
        return None
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if len(numbers) > MAX_ITEMS:
        return f'has more than {MAX_ITEMS} values'
    if not all(n is None or isinstance(n, (int, float)) for n in numbers):
        return 'is not a number or a list of numbers'
    if not all(n is None or isinstance(n, bool) or math.isfinite(n) and abs(n) <= high for n in numbers):
        return f'is beyond {high:g}'
    return None


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) else reprlib.repr(value)
    return f"'{printable(text if len(text) <= 80 else text[:80] + '...')}'"
