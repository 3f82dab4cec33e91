"""Text encoder and U-Net of students and teacher, and NASA inside their cross-attention."""

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import scenes
import tokenizer

T = 999  # the students' only step
ALPHAS_BAR = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod


class NasaProcessor:
    """Cross-attention Z+ - alpha Z-, before the output projection (SNOOPI, Eq. 7-9). One for a whole U-Net."""

    def __init__(self):
        self.negative = self.alpha = None  # [B, L, C] and [B], for one forward pass

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        b = hidden_states.shape[0]
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        split = lambda t: t.view(b, -1, attn.heads, t.shape[-1] // attn.heads).transpose(1, 2)
        q = split(attn.to_q(hidden_states))
        z = F.scaled_dot_product_attention(q, split(attn.to_k(context)), split(attn.to_v(context)))
        if encoder_hidden_states is not None and self.negative is not None:
            minus = F.scaled_dot_product_attention(q, split(attn.to_k(self.negative)), split(attn.to_v(self.negative)))
            z = z - self.alpha.view(-1, 1, 1, 1) * minus
        return attn.to_out[0](z.transpose(1, 2).flatten(2))


class Painter(torch.nn.Module):
    """11.5 M parameters with the default widths; tests make smaller ones."""

    def __init__(self, tok, hidden=192, layers=3, widths=(96, 160), heads=(3, 5)):
        super().__init__()
        self.tok = tok
        self.text = CLIPTextModel(CLIPTextConfig(
            vocab_size=len(tok), hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers, num_attention_heads=hidden // 32,
            max_position_embeddings=tokenizer.LENGTH, projection_dim=hidden, bos_token_id=tok.bos_token_id,
            eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id))
        self.unet = UNet2DConditionModel(
            sample_size=scenes.LATENT[1], in_channels=8, out_channels=8, block_out_channels=widths, layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=hidden, attention_head_dim=heads)
        self.nasa = NasaProcessor()
        self.unet.set_attn_processor(self.nasa)

    def encode(self, texts):
        """[B, LENGTH, hidden]"""
        ids = self.tok(texts, padding="max_length", max_length=tokenizer.LENGTH, truncation=True, return_tensors="pt").input_ids
        return self.text(ids).last_hidden_state

    def velocity(self, x, t, context, negative=None, alpha=None):
        """v at time steps t [B] of latents x [B, 8, 12, 12]; with a negative text, NASA at alpha [B]."""
        self.nasa.negative, self.nasa.alpha = negative, alpha
        v = self.unet(x, t, context).sample
        self.nasa.negative = self.nasa.alpha = None
        return v

    def draw(self, noise, context, negative=None, alpha=None):
        """x0 in one step."""
        t = torch.full((len(noise),), T)
        return x0_of(noise, self.velocity(noise, t, context, negative, alpha), t)


def signal_and_noise(t):
    """The factors of x0 and of the noise at time steps t, [B, 1, 1, 1] each."""
    alpha_bar = ALPHAS_BAR[t].view(-1, 1, 1, 1)
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def x0_of(x, v, t):
    signal, noise = signal_and_noise(t)
    return signal * x - noise * v


def noised(x0, noise, t):
    """(x_t, v)."""
    a, s = signal_and_noise(t)
    return a * x0 + s * noise, a * noise - s * x0


def load_tokenizer(state):
    tokenizer.make(f"{state}/tokenizer")
    return CLIPTokenizer.from_pretrained(f"{state}/tokenizer")
