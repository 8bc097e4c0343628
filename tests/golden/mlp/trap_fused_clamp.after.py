# Trap: clamps and another activation, in a fused form: minimax_m3_vl.
# block: GatedMLP("Block", gate_up="gate_up_proj")
# site: line 10: mlp call-alone: gate_up_proj
# site: line 15: mlp call-alone: down_proj
# skip: line 15: mlp: not a gated MLP: `(up + 1.0) * glu` stands in between


class Block(nn.Module):
    def forward(self, hidden_states):
        gate_up = self.apply_linear(self.gate_up_proj, hidden_states)
        gate, up = gate_up.chunk(2, dim=-1)
        gate = gate.clamp(max=self.swiglu_limit)
        up = up.clamp(min=-self.swiglu_limit, max=self.swiglu_limit)
        glu = gate * torch.sigmoid(gate * self.swiglu_alpha)
        return self.apply_linear(self.down_proj, (up + 1.0) * glu)
