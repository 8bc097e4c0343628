# Gated, with a dropout module before the last projection.
# block: GatedMLP("Block", "wi_0", "wi_1", "wo", activation="act", dropout="dropout")
# site: line 8: mlp gated-mlp: wi_0 act wi_1 wo


class Block(nn.Module):
    def forward(self, hidden_states):
        hidden_states = self.apply_mlp(hidden_states, dropout=self.dropout)
        return hidden_states
