# The cast of T5: none where the weight has the dtype of what it is given.
# block: MLP("Block", "wi", "wo", activation="act", dropout="dropout")
# site: line 8: mlp ungated-mlp: wi act wo


class Block(nn.Module):
    def forward(self, h):
        h = self.apply_mlp(h, dropout=self.dropout, cast_unless=(torch.int8,))
        return h
