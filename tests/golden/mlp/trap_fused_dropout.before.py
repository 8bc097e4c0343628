# Trap: dropout before down, in a fused form: phi4_multimodal.
# block: GatedMLP("Block", gate_up="gate_up_proj")
# site: line 11: mlp call-alone: gate_up_proj
# site: line 15: mlp call-alone: down_proj
# skip: line 14: mlp: not a gated MLP: `self.dropout(up_states)` stands in between


class Block(nn.Module):
    def forward(self, hidden_states):
        hidden_states = self.layer_norm(hidden_states)
        up_states = self.gate_up_proj(hidden_states)
        up_states, gate = up_states.chunk(2, dim=-1)
        up_states = up_states * self.act_fn(gate)
        up_states = self.dropout(up_states)
        hidden_states = self.down_proj(up_states)
        return self.dropout(hidden_states)
