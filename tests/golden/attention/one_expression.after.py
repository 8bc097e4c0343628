# All three calls in one expression: kimi_linear, bailing_hybrid.
# block: Attention("Block")
# site: line 10: qkv qkv-together: q_proj k_proj v_proj
# site: line 12: o output-call: o_proj


class Block(nn.Module):
    def forward(self, hidden_states):
        q, k, v = self.apply_qkv(hidden_states)
        mixed_qkv = torch.cat(
            [q, k, v], dim=-1
        ).transpose(1, 2)
        return self.apply_o(self.conv1d(mixed_qkv).transpose(1, 2))
