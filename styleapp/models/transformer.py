"""The feed-forward network of one style: convolutions, residual blocks and instance norm."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from styleapp.norms import InstanceNorm

__all__ = ["TransformerNet"]


class _Conv(nn.Module):
    """A convolution with reflection padding, after nearest upsampling where ``upsample`` says so."""

    def __init__(self, in_channels: int, channels: int, size: int, stride: int = 1, upsample: int = 1) -> None:
        super().__init__()
        self.pad, self.upsample = size // 2, upsample
        self.conv2d = nn.Conv2d(in_channels, channels, size, stride)

    def forward(self, x: Tensor) -> Tensor:
        if self.upsample > 1:
            x = F.interpolate(x, scale_factor=float(self.upsample), mode="nearest")
        y: Tensor = self.conv2d(F.pad(x, (self.pad,) * 4, mode="reflect"))
        return y


class _Residual(nn.Module):
    """x + norm(conv(relu(norm(conv(x)))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _Conv(channels, channels, 3), _Conv(channels, channels, 3)
        self.in1, self.in2 = InstanceNorm(channels, affine=True), InstanceNorm(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.in2(self.conv2(F.relu(self.in1(self.conv1(x)))))
        return y


class TransformerNet(nn.Module):
    """Johnson, Alahi and Fei-Fei 2016 with the instance norm of Ulyanov et al. 2017: one network for one style.

    The layout, and so the names in a state dict, of the network that PyTorch's examples train (fast_neural_style).

    Shape:
        (N, 3, H, W), RGB in [0,1], H and W >= 16, to the same; around [0,1] but not clamped.
    """

    def __init__(self, channels: tuple[int, int, int] = (32, 64, 128), blocks: int = 5) -> None:
        super().__init__()
        first, second, third = channels
        self.conv1, self.in1 = _Conv(3, first, 9), InstanceNorm(first, affine=True)
        self.conv2, self.in2 = _Conv(first, second, 3, 2), InstanceNorm(second, affine=True)
        self.conv3, self.in3 = _Conv(second, third, 3, 2), InstanceNorm(third, affine=True)
        self.blocks = [f"res{i + 1}" for i in range(blocks)]
        for name in self.blocks:
            self.add_module(name, _Residual(third))
        self.deconv1, self.in4 = _Conv(third, second, 3, 1, 2), InstanceNorm(second, affine=True)
        self.deconv2, self.in5 = _Conv(second, first, 3, 1, 2), InstanceNorm(first, affine=True)
        self.deconv3 = _Conv(first, 3, 9)

    def forward(self, image: Tensor) -> Tensor:
        """The stylized photo, float32, of the size of ``image``. Inside, pixels are 0 to 255 as it was trained."""
        x = (255 * image).to(next(self.parameters()).dtype)
        for conv, norm in (("conv1", "in1"), ("conv2", "in2"), ("conv3", "in3")):
            x = F.relu(self.get_submodule(norm)(self.get_submodule(conv)(x)))
        for name in self.blocks:
            x = self.get_submodule(name)(x)
        for conv, norm in (("deconv1", "in4"), ("deconv2", "in5")):
            x = F.relu(self.get_submodule(norm)(self.get_submodule(conv)(x)))
        y: Tensor = self.deconv3(x)[..., : image.shape[-2], : image.shape[-1]]  # strides round sizes up
        return y.float() / 255
