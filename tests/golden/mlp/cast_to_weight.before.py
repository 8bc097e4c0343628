# The cast of T5: none where the weight has the dtype of what it is given.
# block: MLP("Block", "wi", "wo", activation="act", dropout="dropout")
# site: line 8: mlp ungated-mlp: wi act wo


class Block(nn.Module):
    def forward(self, h):
        h = self.act(self.wi(h))
        h = self.dropout(h)
        if (
            isinstance(self.wo.weight, torch.Tensor)
            and h.dtype != self.wo.weight.dtype
            and self.wo.weight.dtype != torch.int8
        ):
            h = h.to(self.wo.weight.dtype)
        h = self.wo(h)
        return h
