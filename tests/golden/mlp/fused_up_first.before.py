# One projection, the second half is the gate: moonshine.
# block: GatedMLP("Block", gate_up="fc1", down="fc2", activation="activation_fn")
# site: line 8: mlp gated-mlp: fc1 activation_fn fc2 (up in the first half)


class Block(nn.Module):
    def forward(self, hidden_states):
        hidden_states = self.fc1(hidden_states)
        hidden_states, gate = hidden_states.chunk(2, dim=-1)
        hidden_states = self.activation_fn(gate) * hidden_states
        hidden_states = self.fc2(hidden_states)
        return hidden_states
