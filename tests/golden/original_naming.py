"""Names of diffusers' tensors in the original code bases, as single-file checkpoints have them; {diffusers': original}."""

import re


def rename(names, rules):
    """Each name by the first rule that matches it; a rule is a pattern and a text or a function of the match."""
    out = {}
    for name in names:
        for pattern, new in rules:
            if re.search(pattern, name):
                out[name] = re.sub(pattern, new, name, count=1)
                break
        else:
            raise KeyError(name)
    return out


def inner(rest):
    for ours, theirs in (("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
                         ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection")):
        rest = rest.replace(ours, theirs)
    return rest


def unet(names, config):
    per = config["layers_per_block"] + 1
    attends = lambda i: "CrossAttn" in config["up_block_types"][int(i)]
    return rename(names, [
        (r"^time_embedding.linear_1", "time_embed.0"), (r"^time_embedding.linear_2", "time_embed.2"),
        (r"^add_embedding.linear_1", "label_emb.0.0"), (r"^add_embedding.linear_2", "label_emb.0.2"),
        (r"^conv_in", "input_blocks.0.0"), (r"^conv_norm_out", "out.0"), (r"^conv_out", "out.2"),
        (r"^down_blocks.(\d+).resnets.(\d+)(.*)", lambda m: f"input_blocks.{1 + int(m[1]) * per + int(m[2])}.0{inner(m[3])}"),
        (r"^down_blocks.(\d+).attentions.(\d+)", lambda m: f"input_blocks.{1 + int(m[1]) * per + int(m[2])}.1"),
        (r"^down_blocks.(\d+).downsamplers.0.conv", lambda m: f"input_blocks.{(int(m[1]) + 1) * per}.0.op"),
        (r"^mid_block.resnets.(\d)(.*)", lambda m: f"middle_block.{2 * int(m[1])}{inner(m[2])}"),
        (r"^mid_block.attentions.0", "middle_block.1"),
        (r"^up_blocks.(\d+).resnets.(\d+)(.*)", lambda m: f"output_blocks.{int(m[1]) * per + int(m[2])}.0{inner(m[3])}"),
        (r"^up_blocks.(\d+).attentions.(\d+)", lambda m: f"output_blocks.{int(m[1]) * per + int(m[2])}.1"),
        (r"^up_blocks.(\d+).upsamplers.0", lambda m: f"output_blocks.{int(m[1]) * per + per - 1}.{1 + attends(m[1])}")])


def vae(names, config):
    """Its attention's matrices are stored as 1x1 convolutions besides."""
    last = len(config["block_out_channels"]) - 1
    short = lambda rest: rest.replace("conv_shortcut", "nin_shortcut")
    return rename(names, [
        (r"conv_norm_out", "norm_out"), (r"^(encoder|decoder).conv|^quant_conv|^post_quant_conv", r"\g<0>"),
        (r"mid_block.resnets.(\d)(.*)", lambda m: f"mid.block_{int(m[1]) + 1}{short(m[2])}"),
        (r"mid_block.attentions.0.group_norm", "mid.attn_1.norm"), (r"mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
        (r"mid_block.attentions.0.to_([qkv])", r"mid.attn_1.\1"),
        (r"down_blocks.(\d).resnets.(\d)(.*)", lambda m: f"down.{m[1]}.block.{m[2]}{short(m[3])}"),
        (r"down_blocks.(\d).downsamplers.0", r"down.\1.downsample"),
        (r"up_blocks.(\d).resnets.(\d)(.*)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}{short(m[3])}"),
        (r"up_blocks.(\d).upsamplers.0", lambda m: f"up.{last - int(m[1])}.upsample")])
