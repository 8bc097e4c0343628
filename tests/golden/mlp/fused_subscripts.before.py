# One projection, halves by subscript: granitemoeshared.
# block: GatedMLP("Block", gate_up="input_linear", down="output_linear", activation="activation")
# site: line 8: mlp gated-mlp: input_linear activation output_linear


class Block(nn.Module):
    def forward(self, hidden_states):
        hidden_states = self.input_linear(hidden_states)
        chunked_hidden_states = hidden_states.chunk(2, dim=-1)
        hidden_states = self.activation(chunked_hidden_states[0]) * chunked_hidden_states[1]
        hidden_states = self.output_linear(hidden_states)
        return hidden_states
