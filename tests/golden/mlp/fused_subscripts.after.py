# One projection, halves by subscript: granitemoeshared.
# block: GatedMLP("Block", gate_up="input_linear", down="output_linear", activation="activation")
# site: line 8: mlp gated-mlp: input_linear activation output_linear


class Block(nn.Module):
    def forward(self, hidden_states):
        hidden_states = self.apply_mlp(hidden_states)
        return hidden_states
