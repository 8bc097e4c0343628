"""Norms as transformers and others write them, and what keeps a class from being one that is computed again."""

import torch
import torch as not_torch
from torch import nn


class Usual(nn.Module):
    def __init__(self, weight=True):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 8)) if weight else None
        self.eps = 1e-6

    def forward(self, x):
        """A line that computes nothing."""
        dtype = x.dtype
        x = x.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(dtype)


class ByMethods(Usual):
    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        return (self._norm(x.float()) * (1.0 + self.weight.float())).type_as(x)


class Deciding(Usual):
    with_scale = True

    def forward(self, x):
        made = x.float() * torch.rsqrt(x.float().square().mean((-1,), keepdim=True) + self.eps)
        if self.with_scale:
            made = made * -self.weight.float()
        if self.weight.dtype in [torch.float16, torch.bfloat16]:
            made = made.to(self.weight.dtype)
        return made.type_as(x)


class Inherited(ByMethods):
    pass


class NoCast(Usual):
    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class Drawing(Usual):
    def forward(self, x):
        return x.float() * torch.rand(1)


class DrawingByMethod(Usual):
    def forward(self, x):
        return x.float().bernoulli().to(x.dtype)


class Writing(Usual):
    def forward(self, x):
        y = x.float()
        y += self.eps
        return y.to(x.dtype)


class WritingByMethod(Usual):
    def forward(self, x):
        return x.float().mul_(2).to(x.dtype)


class WritingToItself(Usual):
    def forward(self, x):
        self.seen = x.float()
        return self.seen.to(x.dtype)


class WithModule(Usual):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return self.inner(x.float()).to(x.dtype)


class OfValues(Usual):
    def forward(self, x):
        if x.float().mean() > 0:
            return x
        return x.float().to(x.dtype)


class OfOneValue(Usual):
    def forward(self, x):
        return x.float().to(x.dtype) if self.eps else x


class TwoTensors(Usual):
    def forward(self, x, gate):
        return (x.float() * gate).to(x.dtype)


class WithDefault(Usual):
    def forward(self, x, scale=1.0):
        return (x.float() * scale).to(x.dtype)


class PassingOn(Usual):
    def forward(self, x):
        return x.float().mean(**self.eps).to(x.dtype)


class BySuper(Usual):
    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


class CallingAName(Usual):
    def forward(self, x):
        repr(x)
        return x.float().to(x.dtype)


class OtherFunction(Usual):
    def forward(self, x):
        return torch.dropout(x.float(), 0.5, True).to(x.dtype)


class OtherName(Usual):
    def forward(self, x):
        return not_torch.sqrt(x.float()).to(x.dtype)


class OfAnAttribute(Usual):
    def forward(self, x):
        return (x.float() * self.weight.grad).to(x.dtype)


class TorchReassigned(Usual):
    def forward(self, x):
        torch = self.eps
        return x.float() * torch


class Looping(Usual):
    def forward(self, x):
        for _ in self.eps:
            x = x.float()
        return x


class TwoTargets(Usual):
    def forward(self, x):
        a, b = x.float(), x
        return a * b


class OfTorch(Usual):
    def forward(self, x):
        return x.float() * torch.pi


class Indexing(Usual):
    def forward(self, x):
        return x.float()[0]


class Wrapped(Usual):
    @torch.no_grad()
    def forward(self, x):
        return x.float().to(x.dtype)


NORMS = (Usual, ByMethods, Deciding, Inherited)

OTHERS = {
    NoCast: "it casts nothing to float32",
    Drawing: "it calls rand",
    DrawingByMethod: "it calls bernoulli",
    Writing: "is not arithmetic",
    WritingByMethod: "it calls mul_",
    WritingToItself: "is not arithmetic",
    WithModule: "it has no method inner",
    OfValues: "decides by more than a number of its own",
    OfOneValue: "is not arithmetic",
    TwoTensors: "takes something else than one tensor",
    WithDefault: "takes something else than one tensor",
    PassingOn: "passes on what it was given",
    BySuper: "its forward is wrapped",
    CallingAName: "is not arithmetic",
    OtherFunction: "it calls dropout",
    OtherName: "is not arithmetic",
    OfAnAttribute: "it reads .grad",
    TorchReassigned: "it assigns torch",
    Looping: "is not arithmetic",
    TwoTargets: "is not arithmetic",
    OfTorch: "it reads torch.pi",
    Indexing: "is not arithmetic",
    Wrapped: "its forward ",
}
