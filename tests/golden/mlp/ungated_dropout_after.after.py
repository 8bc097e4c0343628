# No gate, with dropout after it: gpt2.
# block: MLP("Block", "c_fc", "c_proj", "act")
# site: line 8: mlp ungated-mlp: c_fc act c_proj


class Block(nn.Module):
    def forward(self, hidden_states):
        hidden_states = self.apply_mlp(hidden_states)
        hidden_states = self.dropout(hidden_states)
        return hidden_states
