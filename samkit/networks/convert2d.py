"""Official SAM files to our networks: what the shapes say, other image sizes, SAMed's LoRA files.

Functions on plain dictionaries, name to shape or tensor. Names in a state are the official ones; LoRA adds its own.
Shapes are not trusted: a file that is something else is a CheckpointError that names what was found and needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor
from torch.nn import functional as F

from samkit.errors import CheckpointError
from samkit.networks.sam2d_config import ARCHS, STRIDE, SUBCORTICAL, Sam2DConfig, VitConfig

LORA_IMAGE = 512
"""Side of the input that SAMed and LoRA-SAM train at [pixels]; the file does not say it."""
GLOBAL_BLOCKS: dict[int, tuple[int, ...]] = {arch["depth"]: arch["global_blocks"] for arch in ARCHS.values()}
"""Blocks that attend over the whole grid, for the depths of ViT-B, L and H."""
_TARGETS = {1: "q", 2: "qv", 3: "qkv"}
"""Which projections carry LoRA, by the count of updates in a block; SAMed writes two."""
_POS_EMBED = "image_encoder.pos_embed"
_REL_POS = re.compile(r"image_encoder\.blocks\.(\d+)\.attn\.rel_pos_[hw]")
_QKV = re.compile(r"(image_encoder\.blocks\.\d+\.attn\.qkv)\.(weight|bias)")
_TRANSFORMER = "mask_decoder.transformer."
_TRAINED_ANEW = ("mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head")
"""What depends on the number of mask tokens."""
_DECODER_UPDATES = {
    "sa": "self_attn",
    "cti": "cross_attn_token_to_image",
    "cit": "cross_attn_image_to_token",
}
"""SAMed_s's abbreviations of the attentions in a decoder layer; `fati` is the final attention, token to image."""
_FINAL_UPDATES = {
    f"fati_{letter}{which}": f"{_TRANSFORMER}final_attn_token_to_image.{letter}_proj.linear_{which}.weight"
    for letter in "qv"
    for which in "ab"
}


def sam_config(shapes: Mapping[str, tuple[int, ...]]) -> Sam2DConfig:
    """Return the network of an official SAM, MedSAM or SAM-Med2D state: ViT-B, L or H, at any image size.

    Heads of the decoder can't be read from shapes and are SAM's eight. Raises CheckpointError for another file.
    """

    def size(name: str, axes: int, axis: int) -> int:
        shape = shapes.get(name)
        if shape is None or len(shape) != axes or not all(shape):
            found = "no such name" if shape is None else f"shape {tuple(shape)}"
            raise CheckpointError(
                f"this is no checkpoint of SAM: {name} needs {axes} axes and there is {found}; the file holds "
                f"{_some(shapes)}. Give one with image_encoder.*, prompt_encoder.* and mask_decoder.*, such as "
                "sam_vit_b_01ec64.pth"
            )
        return shape[axis]

    def table(block: int) -> int:
        return size(f"image_encoder.blocks.{block}.attn.rel_pos_h", 2, 0)

    grid, width = size(_POS_EMBED, 4, 1), size("image_encoder.patch_embed.proj.weight", 4, 0)
    depth = len({match[1] for name in shapes if (match := _REL_POS.fullmatch(name))})
    tables = {block: table(block) for block in range(max(depth, 1))}
    blocks = GLOBAL_BLOCKS.get(depth, ())
    if not blocks or any(tables[block] != 2 * grid - 1 for block in blocks):
        blocks = tuple(block for block, length in tables.items() if length == 2 * grid - 1)
    windows = {length for block, length in tables.items() if block not in blocks}
    if len(windows) > 1:
        raise CheckpointError(
            f"this is no checkpoint of SAM: its relative positions have lengths {sorted(set(tables.values()))} on a "
            f"grid of {grid}, needed is one length for all windows; give the file that the authors released"
        )
    return Sam2DConfig(
        image=grid * STRIDE,
        width=width,
        depth=depth,
        heads=width // size("image_encoder.blocks.0.attn.rel_pos_h", 2, 1),
        mlp_ratio=size("image_encoder.blocks.0.mlp.lin1.weight", 2, 0) // width,
        window=(windows.pop() + 1) // 2 if windows else VitConfig.window,
        global_blocks=blocks,
        channels=size("image_encoder.neck.0.weight", 4, 0),
        masks=size("mask_decoder.mask_tokens.weight", 2, 0),
        decoder_mlp=size(f"{_TRANSFORMER}layers.0.mlp.lin1.weight", 2, 0),
        iou_hidden=size("mask_decoder.iou_prediction_head.layers.0.weight", 2, 0),
        adapter="image_encoder.blocks.0.Adapter.norm.weight" in shapes,
    )


def resize_encoder(state: Mapping[str, Tensor], config: VitConfig) -> dict[str, Tensor]:
    """Return `state` with the encoder's positions at the size of `config`, bilinear; all else as it is.

    These are the table of absolute positions and the relative ones of the global blocks, chosen by index: official
    code looks for digits in names, which goes wrong for ViT-L and H. What has the size already is taken as it is; so
    is what is no table, for `fill_network` to refuse.
    """
    resized = dict(state)
    for name, tensor in state.items():
        if not tensor.numel():
            continue
        if name == _POS_EMBED and tensor.ndim == 4 and tensor.shape[1:3] != (config.grid, config.grid):
            table = F.interpolate(tensor.float().permute(0, 3, 1, 2), (config.grid, config.grid), mode="bilinear")
            resized[name] = table.permute(0, 2, 3, 1)
        block = _REL_POS.fullmatch(name)
        is_global = block is not None and int(block[1]) in config.global_blocks
        if is_global and tensor.ndim == 2 and len(tensor) != 2 * config.grid - 1:
            resized[name] = F.interpolate(tensor.float().T[None], 2 * config.grid - 1, mode="linear")[0].T
    return resized


def lora_sam(
    lora_state: Mapping[str, Tensor], base_state: Mapping[str, Tensor]
) -> tuple[Sam2DConfig, dict[str, Tensor]]:
    """Return the network and the state of a LoRA file of SAMed on top of SAM's own file, at 1024 or already at 512.

    The rank, which projections carry LoRA (two updates in a block are q and v, one is q, three are q, k, v), the
    number of masks and, in SAMed_s's files, the decoder's LoRA are read from the file; the frozen parts are the base's.
    Raises CheckpointError where either is something else.
    """
    base = sam_config({name: tuple(tensor.shape) for name, tensor in base_state.items()})
    if base.adapter:
        raise CheckpointError(
            "the base holds SAM-Med2D's adapters, and SAMed trains on SAM; give SAM's own file, "
            "{base} sam_vit_b_01ec64.pth",
            options=("base",),
        )
    updates = _updates(lora_state, base.depth)
    tokens = lora_state.get("mask_decoder.mask_tokens.weight")
    if not updates or tokens is None or tokens.ndim != 2:
        raise CheckpointError(
            f"this is no LoRA file of SAMed: needed are w_a_000, w_b_000 and so on, or sa_a_000 and so on, beside "
            f"mask_decoder.* and prompt_encoder.*, and the file holds {_some(lora_state)}; give epoch_NNN.pth as "
            "{checkpoint} and SAM's own file as {base}",
            options=("checkpoint", "base"),
        )
    if flat := [name for name, tensor in updates.items() if tensor.ndim != 2]:
        raise CheckpointError(
            f"this LoRA file has matrices that are none ({', '.join(flat[:4])}), needed are two axes; give the file "
            "that training wrote"
        )
    ranks = {tensor.shape[0] for name, tensor in updates.items() if "linear_a" in name}
    ranks |= {tensor.shape[1] for name, tensor in updates.items() if "linear_b" in name}
    if len(ranks) != 1:
        raise CheckpointError(
            f"this LoRA file mixes ranks {sorted(ranks)}, needed is one for all; give the file that training wrote"
        )
    masks = len(tokens)
    encoder = [name for name in updates if name.startswith("image_encoder.blocks.0.")]
    places = {name.split(".")[0] for name in updates}
    config = replace(
        base,
        image=LORA_IMAGE,
        masks=masks,
        lora_rank=ranks.pop(),
        lora_targets=_TARGETS[len(encoder) // 2] if encoder else "qv",
        lora_place="both" if len(places) == 2 else "encoder" if encoder else "decoder",
        structures=SUBCORTICAL if masks == len(SUBCORTICAL) + 1 else (),
    )
    # With LoRA in the decoder, SAMed_s leaves the two-way transformer frozen, and out of the file.
    frozen = {n: t for n, t in base_state.items() if n.startswith(("image_encoder.", _TRANSFORMER))}
    trained = {n: t for n, t in lora_state.items() if n.startswith(("prompt_encoder.", "mask_decoder."))}
    return config, {**_with_lora_names(resize_encoder(frozen, config), config), **trained, **updates}


def start_lora_sam(base_state: Mapping[str, Tensor], config: Sam2DConfig) -> dict[str, Tensor]:
    """Return what training of `config` starts from, given SAM's own state: positions resized, names as with LoRA.

    What depends on the number of masks is left out where that differs; it and the updates stay as initialised.
    """
    state = _with_lora_names(resize_encoder(base_state, config), config)
    tokens = state.get("mask_decoder.mask_tokens.weight")
    if tokens is not None and len(tokens) == config.masks:
        return state
    return {name: tensor for name, tensor in state.items() if not any(word in name for word in _TRAINED_ANEW)}


def _with_lora_names(state: Mapping[str, Tensor], config: Sam2DConfig) -> dict[str, Tensor]:
    """Return `state` with the encoder's qkv where LoRA keeps it; the decoder's projections keep their names."""
    if not config.lora_rank or config.lora_place == "decoder":
        return dict(state)
    return {_QKV.sub(r"\1.qkv.\2", name): tensor for name, tensor in state.items()}


def _updates(lora_state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Return the low-rank matrices of a SAMed file under our names.

    In the encoder, matrix i belongs to block i // updates per block. In the decoder (SAMed_s), matrices 0 and 1 are
    q and v of layer 0, 2 and 3 those of layer 1.
    """
    numbers = {
        which: sorted(int(name[4:]) for name in lora_state if re.fullmatch(rf"w_{which}_\d+", name)) for which in "ab"
    }
    count = len(numbers["a"])
    if numbers["a"] != numbers["b"] or numbers["a"] != list(range(count)) or (count and count / depth not in _TARGETS):
        raise CheckpointError(
            f"this LoRA file has {count} matrices w_a_* and {len(numbers['b'])} w_b_* for {depth} blocks, needed are "
            "one, two or three of each for every block, numbered from 000; is the base the file that it was trained on?"
        )
    letters = _TARGETS.get(count // depth, "")
    updates = {}
    for name, tensor in lora_state.items():
        found = re.fullmatch(r"(w|sa|cti|cit)_([ab])_(\d+)", name)
        if found and found[1] == "w":
            block, target = divmod(int(found[3]), len(letters))
            updates[f"image_encoder.blocks.{block}.attn.qkv.linear_{found[2]}_{letters[target]}.weight"] = tensor
        elif found:
            layer, target = divmod(int(found[3]), 2)
            attention = f"{_TRANSFORMER}layers.{layer}.{_DECODER_UPDATES[found[1]]}"
            updates[f"{attention}.{'qv'[target]}_proj.linear_{found[2]}.weight"] = tensor
        elif name in _FINAL_UPDATES:
            updates[_FINAL_UPDATES[name]] = tensor
    return updates


def _some(names: Iterable[str]) -> str:
    """Return a clause on what a file holds: the count of names and the first of them."""
    listed = list(names)
    return f"{len(listed)} tensors ({', '.join(listed[:4])}{', ...' if len(listed) > 4 else ''})"
