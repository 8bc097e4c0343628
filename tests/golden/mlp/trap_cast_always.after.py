# Trap: nothing says that a weight of the same dtype leaves it as it is.
# block: MLP("Block", "wi", "wo", activation="act", dropout="dropout")
# site: line 10: mlp call-alone: wi
# site: line 17: mlp call-alone: wo
# skip: line 12: mlp: not an MLP: `if ( isinstance(self.wo.weight, torch.Tensor) and self.wo.weight.dtype != torch.int8 ): h = h.to(...` stands in between


class Block(nn.Module):
    def forward(self, h):
        h = self.act(self.apply_linear(self.wi, h))
        h = self.dropout(h)
        if (
            isinstance(self.wo.weight, torch.Tensor)
            and self.wo.weight.dtype != torch.int8
        ):
            h = h.to(self.wo.weight.dtype)
        h = self.apply_linear(self.wo, h)
        return h
