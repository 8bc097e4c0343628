# A gated MLP at the end of something else: glm4v's patch merger, diffusion_gemma.
# block: GatedMLP("Block")
# site: line 10: mlp gated-mlp: gate_proj act_fn up_proj down_proj


class Block(nn.Module):
    def forward(self, inputs_embeds, signal):
        normed = self.pre_norm(signal)
        normed = self.act1(self.proj(normed))
        sc_signal = self.apply_mlp(normed)
        combined = inputs_embeds + sc_signal
        return self.post_norm(combined)
