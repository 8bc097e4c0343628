# Trap: the cast is to the dtype of another weight.
# block: MLP("Block", "wi", "wo", activation="act", dropout="dropout")
# site: line 10: mlp call-alone: wi
# site: line 18: mlp call-alone: wo
# skip: line 12: mlp: not an MLP: `if ( isinstance(self.wo.weight, torch.Tensor) and h.dtype != self.wo.weight.dtype and self.wo.wei...` stands in between


class Block(nn.Module):
    def forward(self, h):
        h = self.act(self.apply_linear(self.wi, h))
        h = self.dropout(h)
        if (
            isinstance(self.wo.weight, torch.Tensor)
            and h.dtype != self.wo.weight.dtype
            and self.wo.weight.dtype != torch.int8
        ):
            h = h.to(self.wi.weight.dtype)
        h = self.apply_linear(self.wo, h)
        return h
