# The same in a gated one, with another order of conditions and more of them.
# block: GatedMLP("Block", "wi_0", "wi_1", "wo", activation="act")
# site: line 8: mlp gated-mlp: wi_0 act wi_1 wo


class Block(nn.Module):
    def forward(self, h):
        hidden_gelu = self.act(self.wi_0(h))
        h = hidden_gelu * self.wi_1(h)

        # Kept in float32.
        if h.dtype != self.wo.weight.dtype and isinstance(self.wo.weight, torch.Tensor) and (self.wo.weight.dtype != torch.int8 and self.wo.weight.dtype != torch.uint8):
            h = h.to(self.wo.weight.dtype)
        return self.wo(h)
