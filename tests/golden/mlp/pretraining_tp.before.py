# llama up to 4.46: only the plain branch is the MLP.
# block: GatedMLP("Block")
# site: line 15: mlp gated-mlp: gate_proj act_fn up_proj down_proj


class Block(nn.Module):
    def forward(self, x):
        if self.config.pretraining_tp > 1:
            slice = self.intermediate_size // self.config.pretraining_tp
            gate_proj = torch.cat([F.linear(x, weight) for weight in self.gate_proj.weight.split(slice)], dim=-1)
            up_proj = torch.cat([F.linear(x, weight) for weight in self.up_proj.weight.split(slice)], dim=-1)
            intermediate_states = (self.act_fn(gate_proj) * up_proj).split(slice, dim=2)
            down_proj = sum(F.linear(h, w) for h, w in zip(intermediate_states, self.down_proj.weight.split(slice)))
        else:
            down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

        return down_proj
