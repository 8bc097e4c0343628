# All three calls in one expression: kimi_linear, bailing_hybrid.
# block: Attention("Block")
# site: line 10: qkv qkv-together: q_proj k_proj v_proj
# site: line 12: o output-call: o_proj


class Block(nn.Module):
    def forward(self, hidden_states):
        mixed_qkv = torch.cat(
            [self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)], dim=-1
        ).transpose(1, 2)
        return self.o_proj(self.conv1d(mixed_qkv).transpose(1, 2))
