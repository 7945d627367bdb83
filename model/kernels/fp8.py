"""Linear layers in FP8, for a teacher that is only read: about twice the matrix throughput of 16 bit.

Weights are quantised once, with a scale for each output channel; activations as they come, with a scale for each token
(e4m3, Micikevicius et al., 2022). Products are summed in fp32.

T tokens, I input and O output features.
"""

import torch
from torch import Tensor, nn

_LARGEST = torch.finfo(torch.float8_e4m3fn).max


def available(device: torch.device) -> bool:
    """GPUs of compute capability 8.9 (L40, H100) and later; CPUs, slowly, for tests."""
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 9)


def quantise(x_RK: Tensor) -> tuple[Tensor, Tensor]:
    """float8_e4m3fn [R, K] and fp32 scales [R, 1] whose product is nearly x: each row's largest becomes 448."""
    scale_R1 = x_RK.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / _LARGEST
    return (x_RK.float() / scale_R1).to(torch.float8_e4m3fn), scale_R1


class Float8Linear(nn.Module):
    """x W^T + b, both factors in FP8. Not for training: it has no gradient."""

    weight_OI: Tensor
    scale_1O: Tensor
    bias_O: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_OI, scale_O1 = quantise(linear.weight.detach())
        self.register_buffer("weight_OI", weight_OI)
        self.register_buffer("scale_1O", scale_O1.t().contiguous())
        self.register_buffer("bias_O", linear.bias.detach().bfloat16())

    def forward(self, x_TI: Tensor) -> Tensor:
        """TI -> TO, in the dtype of x; computed in bf16, the only one in which GPUs give products of scaled rows."""
        x8_TI, scale_T1 = quantise(x_TI)
        out_TO = torch._scaled_mm(
            x8_TI, self.weight_OI.t(), scale_T1, self.scale_1O, self.bias_O, out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )  # fmt: skip
        return out_TO.to(x_TI.dtype)


def convert(layers: nn.Module) -> None:
    """Replace every linear layer inside by its FP8 form, in place. Both numbers of features must be multiples of 16."""
    for parent in list(layers.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Float8Linear(child))
