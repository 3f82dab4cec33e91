#!/usr/bin/env python3
"""Schedulers of diffusers 0.42.1 by the keys of scheduler_config.json: where each goes in n steps.

    python tests/golden/schedules.py                  tests/golden/data/schedules.json, for tests/unit/test_sampler.c
    python tests/golden/schedules.py N SEED FILE      N random configurations, for STEER_SCHEDULES=FILE test_sampler

The denoiser is a stand-in that both sides can compute: 0.3 x + a pattern of the call. What diffusers itself refuses
is left out; what it can do and the worker cannot is marked "refused".
"""

import json
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from diffusers import (DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler,
                       FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler, LCMScheduler, PNDMScheduler, TCDScheduler,
                       UniPCMultistepScheduler)
from diffusers.schedulers import scheduling_euler_ancestral_discrete, scheduling_lcm, scheduling_tcd
from diffusers.utils import logging

warnings.filterwarnings("ignore")
np.seterr(all="ignore")
logging.set_verbosity_error()
torch.set_num_threads(1)
COUNT = 5
CLASSES = {c.__name__: c for c in (DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler,
                                   LCMScheduler, FlowMatchEulerDiscreteScheduler, EulerAncestralDiscreteScheduler,
                                   HeunDiscreteScheduler, UniPCMultistepScheduler, TCDScheduler)}
NOISY = scheduling_lcm, scheduling_tcd, scheduling_euler_ancestral_discrete  # who draws fresh noise
SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def pattern(call, times, add, span):
    return torch.tensor([(call * times + i * (times + 6) + add) % span - span // 2 for i in range(COUNT)]) / 8


def follow(config, steps, old=True, eta=0.0):
    """Time steps, the first scale, the last x and what a sample is noised by; None where diffusers raises or makes no
    number. old: StableDiffusionPipeline sets two keys whatever the folder says."""
    config = dict(config, steps_offset=1) if old else dict(config)
    name = config.pop("_class_name")
    if old:
        config.pop("clip_sample", None)
        if name in ("DDIMScheduler", "LCMScheduler", "HeunDiscreteScheduler"):
            config["clip_sample"] = False
    if name in ("LCMScheduler", "TCDScheduler"):
        config.pop("steps_offset", None)
    drawn = [0]

    def noise(*_, **__):
        drawn[0] += 1
        return pattern(drawn[0], 5, 3, 19).view(1, -1)

    drawing = [m.randn_tensor for m in NOISY]
    for m in NOISY:
        m.randn_tensor = noise
    more = dict(eta=eta) if name == "TCDScheduler" else {}
    try:
        s = CLASSES[name].from_config(config)
        flow = name == "FlowMatchEulerDiscreteScheduler"
        if flow:  # as FluxPipeline asks
            s.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
            s.scale_model_input = lambda x, t: x
        else:
            s.set_timesteps(steps)
        init = 1.0 if flow else float(s.init_noise_sigma)
        first = s.timesteps[:1]
        noised = (lambda x, e: s.scale_noise(x, first, e)) if flow else (lambda x, e: s.add_noise(x, e, first))
        added = [noised(torch.full((1, 1), x), torch.full((1, 1), 1 - x)).item() for x in (1.0, 0.0)]
        x = torch.tensor([[((i * 3 + 1) % 7 - 3) / 2 for i in range(COUNT)]]) * init
        for call, t in enumerate(s.timesteps):
            out = 0.3 * s.scale_model_input(x, t) + pattern(call, 7, 5, 17)
            x = s.step(out, t, x, return_dict=False, **more)[0]
    except (ValueError, IndexError, NotImplementedError, ZeroDivisionError, AssertionError, torch.linalg.LinAlgError):
        return None
    finally:
        for m, f in zip(NOISY, drawing):
            m.randn_tensor = f
    if steps < len(s.timesteps) and float(s.timesteps[-1]) == -1:
        return None  # numpy's arange ran one too far, to a time step that does not exist
    twice = {"PNDMScheduler": 12, "HeunDiscreteScheduler": steps - 1}.get(name, 0)
    if not torch.isfinite(x).all() or len(set(s.timesteps.tolist())) + twice < len(s.timesteps):
        return None  # repeated time steps make Euler and DPM-Solver begin at the second
    return [float(t) for t in s.timesteps], init, x[0].tolist(), added


def chosen():
    """Each key of each scheduler once or more, for few and many steps."""
    common = [dict(timestep_spacing=s, prediction_type=p) for s in ("leading", "linspace", "trailing")
              for p in ("epsilon", "v_prediction", "sample")]
    tables = [dict(beta_schedule="linear", beta_start=0.0001, beta_end=0.02), dict(beta_schedule="squaredcos_cap_v2"),
              dict(num_train_timesteps=500), dict(steps_offset=0), dict(steps_offset=3),
              # what stays in a file that was made from another class
              dict(variance_type="fixed_small", clip_sample_range=1.0, prediction_type="epsilon", final_sigmas_type="zero",
                   use_lu_lambdas=False, solver_p=None)]
    own = {
        "DDIMScheduler": [dict(set_alpha_to_one=False), dict(clip_sample=True),
                          dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")],
        "PNDMScheduler": [dict(skip_prk_steps=True), dict(skip_prk_steps=True, rescale_betas_zero_snr=True, thresholding=True), dict(skip_prk_steps=True, set_alpha_to_one=True),
                          dict(skip_prk_steps=True, timestep_spacing="trailing")],
        "EulerDiscreteScheduler": [
            dict(skip_prk_steps=True, set_alpha_to_one=False, thresholding=True, use_flow_sigmas=True, variance_type="learned"),
            dict(use_karras_sigmas=True), dict(use_karras_sigmas=True, timestep_spacing="leading"),
            dict(use_karras_sigmas=True, sigma_min=0.05, sigma_max=12.5), dict(use_exponential_sigmas=True),
            dict(interpolation_type="log_linear"), dict(interpolation_type="log_linear", use_karras_sigmas=True),
            dict(timestep_type="continuous", prediction_type="v_prediction"), dict(timestep_type="continuous"),
            dict(final_sigmas_type="sigma_min"), dict(rescale_betas_zero_snr=True, timestep_spacing="trailing",
                                                      prediction_type="v_prediction")],
        "DPMSolverMultistepScheduler": [
            *[dict(solver_order=o, solver_type=t, lower_order_final=f) for o in (1, 2, 3) for t in ("midpoint", "heun")
              for f in (True, False)],
            *[dict(use_karras_sigmas=True, **more) for more in ({}, dict(beta_schedule="squaredcos_cap_v2"),
                                                                dict(solver_order=3))],
            dict(use_exponential_sigmas=True), dict(use_lu_lambdas=True), dict(euler_at_final=True),
            dict(final_sigmas_type="sigma_min"), dict(final_sigmas_type="sigma_min", solver_order=3),
            dict(lambda_min_clipped=-5.1, beta_schedule="squaredcos_cap_v2"),
            dict(lambda_min_clipped=-2.0, timestep_spacing="trailing"), dict(algorithm_type="deis", solver_type="bh2"),
            dict(rescale_betas_zero_snr=True, timestep_spacing="trailing"),
            dict(rescale_betas_zero_snr=True, prediction_type="v_prediction")],
        "EulerAncestralDiscreteScheduler": [
            dict(skip_prk_steps=True, set_alpha_to_one=False, interpolation_type="linear", use_karras_sigmas=False, final_sigmas_type="sigma_min"),
            dict(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction")],
        "HeunDiscreteScheduler": [
            dict(use_karras_sigmas=True), dict(use_karras_sigmas=True, timestep_spacing="leading"), dict(use_exponential_sigmas=True),
            dict(use_karras_sigmas=True, sigma_min=0.05, sigma_max=12.5), dict(rescale_betas_zero_snr=True, thresholding=True)],
        "UniPCMultistepScheduler": [
            *[dict(solver_order=o, solver_type=t, lower_order_final=f, final_sigmas_type=z) for o in (1, 2, 3)
              for t in ("bh1", "bh2") for f in (True, False) for z in ("zero", "sigma_min")],
            *[dict(use_karras_sigmas=True, **more) for more in (
                {}, dict(beta_schedule="squaredcos_cap_v2"), dict(solver_order=3, final_sigmas_type="sigma_min", sigma_min=0.1))],
            dict(use_exponential_sigmas=True), dict(solver_type="midpoint", disable_corrector=[], solver_p=None),
            dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")],
        "TCDScheduler": [dict(original_inference_steps=40), dict(prediction_type="v_prediction"), dict(prediction_type="sample"),
                         dict(rescale_betas_zero_snr=True, prediction_type="v_prediction")],
        "FlowMatchEulerDiscreteScheduler": [dict(shift=3.0), dict(shift=0.5, num_train_timesteps=500), dict(base_shift=0.3, max_image_seq_len=64)],
        "LCMScheduler": [dict(original_inference_steps=40), dict(timestep_scaling=3.0), dict(prediction_type="v_prediction"),
                         dict(rescale_betas_zero_snr=True, prediction_type="v_prediction")],
    }
    for name in CLASSES:
        flow = name == "FlowMatchEulerDiscreteScheduler"  # it has no table
        for more in [{}, *(common if name not in ("LCMScheduler", "TCDScheduler") and not flow else []), *([] if flow else tables), *own[name]]:
            yield dict(SD, _class_name=name, **{k: v for k, v in more.items() if k not in SD}) | more


def own_rules():
    """What StableDiffusionPipeline forbids and others follow: x0 kept within bounds, and the folder's own steps_offset."""
    for name in ("DDIMScheduler", "LCMScheduler", "HeunDiscreteScheduler"):
        for more in ({}, dict(clip_sample=True), dict(clip_sample=True, clip_sample_range=0.5), dict(clip_sample=False, steps_offset=2)):
            yield dict(SD, _class_name=name, **more)
    yield dict(SD, _class_name="EulerDiscreteScheduler", clip_sample=True)  # a key of others


def refused():
    own = {
        "DDIMScheduler": [dict(trained_betas=[0.1] * 10), dict(thresholding=True), dict(timestep_spacing="linear"),
                          dict(beta_schedule="sigmoid"), dict(set_alpha_to_one="yes")],
        "PNDMScheduler": [dict(prediction_type="sample")],
        "EulerAncestralDiscreteScheduler": [dict(prediction_type="sample"), dict(trained_betas=[0.1] * 10), dict(beta_schedule="exp")],
        "HeunDiscreteScheduler": [dict(use_beta_sigmas=True), dict(beta_schedule="exp"),
                                  dict(use_karras_sigmas=True, use_exponential_sigmas=True)],
        "UniPCMultistepScheduler": [dict(predict_x0=False), dict(disable_corrector=[0]), dict(use_flow_sigmas=True), dict(thresholding=True),
                                    dict(use_beta_sigmas=True), dict(solver_order=4), dict(use_dynamic_shifting=True),
                                    dict(solver_p={}), dict(prediction_type="flow_prediction"), dict(shift_terminal=0.1)],
        "EulerDiscreteScheduler": [dict(use_beta_sigmas=True), dict(interpolation_type="cubic"), dict(sigma_min="low"),
                                   dict(use_karras_sigmas=True, use_exponential_sigmas=True)],
        "DPMSolverMultistepScheduler": [dict(algorithm_type=t) for t in ("dpmsolver", "sde-dpmsolver++", "sde-dpmsolver")]
        + [dict(variance_type="learned_range"), dict(use_flow_sigmas=True), dict(use_dynamic_shifting=True),
           dict(prediction_type="flow_prediction"), dict(solver_order=4), dict(solver_type="rk")],
        "FlowMatchEulerDiscreteScheduler": [dict([(k, v)]) for k, v in dict(
            use_dynamic_shifting=True, shift_terminal=0.1, invert_sigmas=True, use_karras_sigmas=True, use_exponential_sigmas=True,
            use_beta_sigmas=True, stochastic_sampling=True, shift=0).items()],
    }
    for name, all_of_them in own.items():
        for more in all_of_them:
            yield dict(SD, _class_name=name, **{k: v for k, v in more.items() if k not in SD}) | more
    for name in ("DDPMScheduler", "DEISMultistepScheduler", "DPMSolverSinglestepScheduler", "KDPM2DiscreteScheduler"):
        yield dict(SD, _class_name=name)


def some(r):
    """One random configuration."""
    pick = r.choice
    name = pick(list(CLASSES))
    c = dict(_class_name=name, prediction_type=pick(["epsilon", "v_prediction", "sample"]),
             beta_schedule=pick(["linear", "scaled_linear", "scaled_linear", "squaredcos_cap_v2"]),
             beta_start=pick([0.00085, 0.0001, 0.002]), beta_end=pick([0.012, 0.02]),
             num_train_timesteps=pick([1000, 1000, 1000, 500, 321, 1024]), steps_offset=pick([0, 1, 5]))
    flip = lambda: r.random() < 0.5
    rare = lambda: r.random() < 0.2
    if name in ("PNDMScheduler", "EulerAncestralDiscreteScheduler") and c["prediction_type"] == "sample":
        c["prediction_type"] = "epsilon"
    if name not in ("LCMScheduler", "TCDScheduler"):
        c["timestep_spacing"] = pick(["leading", "linspace", "trailing"])
    if name in ("DDIMScheduler", "PNDMScheduler"):
        c["set_alpha_to_one"] = flip()
    if name == "PNDMScheduler":
        c["skip_prk_steps"] = flip()
    elif rare():
        c["rescale_betas_zero_snr"] = True
    if name == "EulerDiscreteScheduler":
        c.update(final_sigmas_type=pick(["zero", "sigma_min"]), interpolation_type=pick(["linear", "linear", "log_linear"]),
                 timestep_type=pick(["discrete", "discrete", "continuous"]))
        c.update({pick(["use_karras_sigmas", "use_exponential_sigmas", "final_sigmas_typo"]): True})
        if rare():
            c.update(sigma_min=0.1, sigma_max=9.0)
    if name == "DPMSolverMultistepScheduler":
        c.update(solver_order=pick([1, 2, 3]), solver_type=pick(["midpoint", "heun", "bh1"]), lower_order_final=flip(),
                 euler_at_final=rare(), final_sigmas_type=pick(["zero", "sigma_min"]))
        c.update({pick(["use_karras_sigmas", "use_exponential_sigmas", "use_lu_lambdas", "no_rule", "no_rule"]): True})
        if rare():
            c["lambda_min_clipped"] = -5.1
    if name == "HeunDiscreteScheduler":
        c.update({pick(["use_karras_sigmas", "use_exponential_sigmas", "no_rule"]): True})
    if name == "UniPCMultistepScheduler":
        c.update(solver_order=pick([1, 2, 3]), solver_type=pick(["bh1", "bh2", "heun"]), lower_order_final=flip(),
                 final_sigmas_type=pick(["zero", "sigma_min"]))
        c.update({pick(["use_karras_sigmas", "use_exponential_sigmas", "no_rule", "no_rule"]): True})
    if name in ("LCMScheduler", "TCDScheduler"):
        c.update(original_inference_steps=pick([50, 40, 100]), timestep_scaling=pick([10.0, 3.0]))
    return c, pick([*range(1, 31), 40, 50])


def rows(cases):
    """Cases are (config, steps) and what else follow takes, which is said in the row."""
    for config, steps, *rest in cases:
        more = rest[0] if rest else {}
        found = follow(config, steps, **more)
        if found:
            yield dict(config=config, steps=steps, **more, timesteps=found[0], init=found[1], x=found[2], noised=found[3])


def main():
    if len(sys.argv) == 4:
        r = random.Random(int(sys.argv[2]))
        out, made = Path(sys.argv[3]), list(rows(some(r) for _ in range(int(sys.argv[1]))))
    else:
        out = Path(__file__).parent / "data" / "schedules.json"
        made = list(rows((c, n) for c in chosen() for n in ((1, 4) if c["_class_name"] in ("LCMScheduler", "TCDScheduler") else (1, 2, 5, 20))))
        made += list(rows((c, n, dict(old=False)) for c in own_rules() for n in (1, 4)))
        made += list(rows((dict(SD, _class_name="TCDScheduler"), n, dict(eta=eta)) for n in (1, 2, 4) for eta in (0.3, 1.0)))
        made += [dict(config=c, steps=20, refused=True) for c in refused()]
    short = lambda v: float(f"{v:.8g}")
    for row in made:
        for key in ("timesteps", "x", "noised"):
            if key in row:
                row[key] = [short(v) for v in row[key]]
    out.write_text("[\n" + ",\n".join(json.dumps(m, separators=(",", ":")) for m in made) + "\n]\n")
    print(len(made), "schedules in", out, out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
