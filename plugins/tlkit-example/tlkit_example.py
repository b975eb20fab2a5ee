"""Banks of oriented edge filters: a backbone that was never trained."""

from dataclasses import dataclass

from tlkit import Backbone, Preprocessing, Weights, hookimpl, option


@dataclass(frozen=True)
class Edges(Backbone):
    name = "edges"
    preprocessing = Preprocessing(64, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), crop_pct=1.0)
    weights = Weights("computed from a formula", license="Apache-2.0")
    orientations: int = option(8, "directions to look for edges in")

    def stages(self, *, pretrained):
        import torch  # here and not above: listing the plugin must cost nothing
        from torch import nn

        def bank(inputs, groups):
            convolution = nn.Conv2d(inputs, groups * self.orientations, 5, 2, padding=2, groups=groups, bias=False)
            if pretrained:
                angles = torch.arange(self.orientations) * (torch.pi / self.orientations)
                y, x = torch.meshgrid(torch.arange(-2.0, 3), torch.arange(-2.0, 3), indexing="ij")
                along = angles.cos()[:, None, None] * x + angles.sin()[:, None, None] * y
                filters = along * torch.exp(-(x**2 + y**2) / 2)  # the slope of a Gaussian, turned
                shape = convolution.weight.shape
                convolution.weight = nn.Parameter(filters[:, None].repeat(groups, shape[1], 1, 1).contiguous())
            return nn.Sequential(convolution, nn.BatchNorm2d(groups * self.orientations), nn.ReLU()).eval()

        return {"edges": bank(3, 1), "textures": bank(self.orientations, self.orientations)}


@hookimpl
def tlkit_backbones():
    return [Edges()]
