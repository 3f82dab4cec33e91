"""The demo model's images/s: 1,000 as one job on a farm, beside the same in diffusers on torch, in turns, same seeds and prompt.

    python tests/bench/demo.py [--images 1000] [--turns 3]

diffusers draws with the batch size that is fastest here; both include decoding, neither writes files but the farm, which makes lossless WebP.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "removal"))
from farm import SOURCE, Farm  # noqa: E402

PROMPT = "a red apple on a blue background"


def farm_rate(farm, images, seed):
    begin = time.time()
    got = farm.fetch(farm.submit([{"model": "demo", "prompt": PROMPT, "images": images, "seed": seed, "guidance": {"method": "none"}}])[0])
    assert len(got) == images
    return images / (time.time() - begin)


def torch_pipe(folder):
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def rate(images, seed, batch):
        begin = time.time()
        for first in range(0, images, batch):
            pipe([PROMPT] * batch, num_inference_steps=1, guidance_scale=1.0, output_type="np",
                 generator=[torch.Generator().manual_seed(seed + first + i) for i in range(batch)])
        return images / (time.time() - begin)

    return rate


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("--images", type=int, default=1000)
    a.add_argument("--turns", type=int, default=3)
    args = a.parse_args()
    folder = SOURCE / "models" / "demo"
    rate = torch_pipe(folder)
    rate(8, 0, 8)
    batch = max((1, 4, 16), key=lambda b: rate(32, 0, b))
    with Farm({"demo": folder}) as farm:
        farm_rate(farm, 8, 0)
        for turn in range(args.turns):
            theirs = rate(min(args.images, 192) // batch * batch, 0, batch)
            ours = farm_rate(farm, args.images, 0)
            print(f"farm {ours:.1f} images/s, diffusers f32 (batch {batch}) {theirs:.1f}, {ours / theirs:.2f} times", flush=True)
