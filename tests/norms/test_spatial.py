import pytest
import torch
from torch import nn
from torch.nn import functional as F

from styleapp.norms import (
    CLADE,
    SEAN,
    SPADE,
    BatchNorm,
    ConditionalInstanceNorm,
    InstanceNorm,
    RegionNorm,
    adain,
    feather,
    moments,
    regional_adain,
)

X = torch.randn(2, 4, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def onehot(labels, count):
    return F.one_hot(labels, count).movedim(-1, 1).double()


class TestSPADE:
    def test_is_the_paper(self):
        spade = SPADE(4, 3, hidden_channels=5, kernel_size=5).double()
        segmap = onehot(torch.randint(3, (2, 12, 16)), 3)
        m = segmap[:, :, ::2, ::2]  # nearest, to half the size
        hidden = torch.relu(F.conv2d(m, spade.shared.weight, spade.shared.bias, padding=2))
        gamma = F.conv2d(hidden, spade.gamma.weight, spade.gamma.bias, padding=2)
        beta = F.conv2d(hidden, spade.beta.weight, spade.beta.bias, padding=2)
        mean, var = X.mean((2, 3), True), X.var((2, 3), correction=0, keepdim=True)
        wanted = (X - mean) / (var + 1e-5).sqrt() * (1 + gamma) + beta
        assert torch.allclose(spade(X, segmap), wanted, atol=1e-12)

    def test_constant_map_is_an_affine_norm(self):
        spade = SPADE(4, 1, kernel_size=1).double()
        gamma, beta = (t[0, :, 0, 0] for t in spade.maps(torch.ones(1, 1, 2, 2), (2, 2)))
        norm = InstanceNorm(4).double()
        norm.load_state_dict({"weight": 1 + gamma, "bias": beta})
        assert torch.allclose(spade(X, torch.ones(2, 1, 3, 3)), norm(X), atol=1e-12)

    def test_any_base(self):
        spade = SPADE(4, 2, base=BatchNorm(4, affine=False)).double()
        spade(X, torch.ones(2, 2, 6, 8))
        assert spade.base.num_batches_tracked == 1
        with pytest.raises(ValueError, match="must be odd, got 4"):
            SPADE(4, 2, kernel_size=4)

    def test_gradients(self):
        spade = SPADE(2, 2, hidden_channels=3).double()
        x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
        m = torch.rand(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(spade, (x, m))


class TestSEAN:
    def make(self, regions=3, **options):
        return SEAN(4, regions, style_channels=5, hidden_channels=6, **options).double()

    def test_is_the_paper(self):
        sean = self.make()
        with torch.no_grad():
            sean.blend_gamma.fill_(0.7)
            sean.blend_beta.fill_(-0.4)
        labels = torch.randint(3, (2, 6, 8))
        codes = torch.randn(2, 3, 5, dtype=torch.float64)
        style_map = torch.zeros(2, 5, 6, 8, dtype=torch.float64)
        for n in range(2):
            for y in range(6):
                for x in range(8):
                    r = labels[n, y, x]
                    style_map[n, :, y, x] = torch.relu(sean.project[r] @ codes[n, r] + sean.project_bias[r])
        a, b = torch.sigmoid(sean.blend_gamma), torch.sigmoid(sean.blend_beta)
        spade_gamma, spade_beta = sean.spade.maps(onehot(labels, 3), (6, 8))
        gamma = a * sean.gamma(style_map) + (1 - a) * spade_gamma
        beta = b * sean.beta(style_map) + (1 - b) * spade_beta
        wanted = nn.InstanceNorm2d(4)(X) * (1 + gamma) + beta
        assert torch.allclose(sean(X, onehot(labels, 3), codes), wanted, atol=1e-12)

    def test_one_region_is_one_code_everywhere(self):
        sean = self.make(1, kernel_size=1)
        codes = torch.randn(2, 1, 5, dtype=torch.float64)
        y = sean(X, torch.ones(2, 1, 6, 8), codes)
        normalised = nn.InstanceNorm2d(4)(X)
        # y is an affine function of the normalised features, the same at every position
        for n in range(2):
            for c in range(4):
                a, b = normalised[n, c].flatten(), y[n, c].flatten()
                slope = (b[1] - b[0]) / (a[1] - a[0])
                assert torch.allclose(b, slope * (a - a[0]) + b[0])

    def test_noise_starts_at_zero_and_counts(self):
        sean = self.make(noise=True)
        args = (X, torch.ones(2, 3, 6, 8), torch.randn(2, 3, 5, dtype=torch.float64))
        assert torch.equal(sean(*args), sean(*args))
        with torch.no_grad():
            sean.noise.fill_(1.0)
        assert not torch.equal(sean(*args), sean(*args))

    def test_regions_must_agree(self):
        with pytest.raises(ValueError, match="SEAN has 3 regions, the map 2, the codes 3"):
            self.make()(X, torch.ones(2, 2, 6, 8), torch.randn(2, 3, 5, dtype=torch.float64))

    def test_gradients(self):
        sean = SEAN(2, 2, style_channels=3, hidden_channels=3).double()
        x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
        codes = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
        masks = torch.rand(1, 2, 3, 3, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda a, b: sean(a, masks, b), (x, codes))


class TestRegions:
    styles = tuple(torch.randn(1, 4, 5, 5, dtype=torch.float64) * s + s for s in (1.0, 4.0))

    def test_each_region_gets_its_style(self):
        left = torch.zeros(1, 1, 6, 8, dtype=torch.float64)
        left[..., :3] = 1
        y = regional_adain(X, self.styles, torch.cat([left, 1 - left], 1))
        assert torch.allclose(y[..., :3], adain(X, self.styles[0])[..., :3])
        assert torch.allclose(y[..., 3:], adain(X, self.styles[1])[..., 3:])

    def test_masks_are_normalised_and_soft_ones_mix(self):
        masks = torch.full((1, 2, 6, 8), 3.0, dtype=torch.float64)
        y = regional_adain(X, [self.styles[0], moments(self.styles[1])], masks)
        assert torch.allclose(y, 0.5 * adain(X, self.styles[0]) + 0.5 * adain(X, self.styles[1]))
        assert torch.allclose(regional_adain(X, self.styles, masks, 0.0), X)

    def test_bad_masks(self):
        with pytest.raises(ValueError, match="1 masks but 2 styles"):
            regional_adain(X, self.styles, torch.ones(1, 1, 6, 8))
        with pytest.raises(ValueError, match="at least one above 0"):
            regional_adain(X, self.styles, torch.zeros(1, 2, 6, 8))

    def test_feather(self):
        masks = torch.zeros(1, 1, 9, 40)
        masks[..., 20:] = 1
        soft = feather(masks, 3.0)
        row = soft[0, 0, 4]
        assert row[0] == 0 and row[-1] == pytest.approx(1, abs=1e-5) and (row.diff() >= -1e-6).all()
        assert row[20] - row[19] < 0.2
        assert feather(masks, 0) is masks
        both = feather(torch.cat([masks, 1 - masks], 1), 3.0)
        assert torch.allclose(both.sum(1), torch.ones(1, 9, 40), atol=1e-5)


class TestClade:
    classes = torch.tensor([[0, 1, 1, 2], [0, 0, 2, 2]])[None]

    def test_each_position_has_the_row_of_its_class(self):
        clade = CLADE(4, 3).double()
        assert torch.equal(clade(X, self.classes), InstanceNorm(4, affine=False).double()(X))
        with torch.no_grad():
            clade.weight.normal_()
            clade.bias.normal_()
        y, plain = clade(X, self.classes), InstanceNorm(4, affine=False).double()(X)
        large = self.classes[0].repeat_interleave(3, 0).repeat_interleave(2, 1)
        for i, j in ((0, 0), (2, 3), (5, 7), (3, 4)):
            row = large[i, j]
            assert torch.allclose(y[..., i, j], plain[..., i, j] * clade.weight[row] + clade.bias[row], atol=1e-12)

    def test_one_class_is_conditional_instance_norm(self):
        clade, cin = CLADE(4, 2).double(), ConditionalInstanceNorm(4, 2).double()
        with torch.no_grad():
            for row in range(2):
                clade.weight[row] = cin.weight[row].normal_()
                clade.bias[row] = cin.bias[row].normal_()
        assert torch.allclose(clade(X, torch.ones(1, 6, 8, dtype=torch.uint8)), cin(X, 1), atol=1e-12)

    def test_errors(self):
        with pytest.raises(IndexError, match="classes must be 0 to 1, got 0 to 2"):
            CLADE(4, 2)(X, self.classes)
        with pytest.raises(ValueError, match="whole numbers"):
            CLADE(4, 3)(X, torch.ones(1, 6, 8))


class TestRegionNorm:
    def test_each_region_is_instance_norm_by_itself(self):
        norm = RegionNorm(4).double()
        with torch.no_grad():
            norm.weight.normal_()
            norm.bias.normal_()
        left = torch.zeros(1, 1, 6, 8)
        left[..., :3] = 1
        y = norm(X, torch.cat([left, 1 - left], 1))
        for r, part in enumerate((slice(0, 3), slice(3, 8))):
            plain = InstanceNorm(4).double()
            plain.load_state_dict({"weight": norm.weight[r], "bias": norm.bias[r]})
            assert torch.allclose(y[..., part], plain(X[..., part]), atol=1e-12)

    def test_what_fills_a_hole_changes_nothing_beside_it(self):
        hole = torch.zeros(2, 1, 6, 8)
        hole[0, :, 2:4, 2:5] = 1  # the second sample has none
        masks = torch.cat([hole, 1 - hole], 1)
        norm = RegionNorm(4).double()
        y, other = norm(X, masks), norm(X + 100 * hole, masks)
        assert torch.allclose(y, other, atol=1e-9) and y.isfinite().all()
        assert torch.allclose(y[1], InstanceNorm(4).double()(X)[1], atol=1e-12)

    def test_one_region_is_instance_norm(self):
        assert torch.allclose(RegionNorm(4, 1).double()(X, torch.ones(1, 1, 3, 4)), InstanceNorm(4).double()(X))
        with pytest.raises(ValueError, match="RegionNorm has 1 regions, got 2 masks"):
            RegionNorm(4, 1)(X, torch.ones(1, 2, 6, 8))
        with pytest.raises(ValueError, match="at least one above 0"):
            RegionNorm(4)(X, torch.zeros(1, 2, 6, 8))
