# Trap: some layers keep only the largest gates: gemma3n.
# block: GatedMLP("Block")
# site: line 11: mlp call-alone: gate_proj
# site: line 15: mlp call-alone: up_proj
# site: line 16: mlp call-alone: down_proj
# skip: line 12: mlp: not a gated MLP: `if self.activation_sparsity > 0.0: gate_proj = self._gaussian_topk(gate_proj)` stands in between


class Block(nn.Module):
    def forward(self, hidden_states):
        gate_proj = self.gate_proj(hidden_states)
        if self.activation_sparsity > 0.0:
            gate_proj = self._gaussian_topk(gate_proj)
        activations = self.act_fn(gate_proj)
        up_proj = self.up_proj(hidden_states)
        down_proj = self.down_proj(activations * up_proj)
        return down_proj
