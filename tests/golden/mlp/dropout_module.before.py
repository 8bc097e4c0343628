# Gated, with a dropout module before the last projection.
# block: GatedMLP("Block", "wi_0", "wi_1", "wo", activation="act", dropout="dropout")
# site: line 8: mlp gated-mlp: wi_0 act wi_1 wo


class Block(nn.Module):
    def forward(self, hidden_states):
        hidden_gelu = self.act(self.wi_0(hidden_states))
        hidden_linear = self.wi_1(hidden_states)
        hidden_states = hidden_gelu * hidden_linear
        hidden_states = self.dropout(hidden_states)
        hidden_states = self.wo(hidden_states)
        return hidden_states
