# A head of another name, and a variable of another name.
# block: LanguageModel("Model", head="embed_out")
# site: line 10: loss loss-of-logits: embed_out


class Model(PreTrainedModel):
    @can_return_tuple
    def forward(self, input_ids, targets=None, logits_to_keep=0, **kwargs):
        outputs = self.model(input_ids, **kwargs)
        lm_logits = self.embed_out(outputs[0])

        lm_loss = None
        if targets is not None:
            lm_loss = self.loss_function(lm_logits, targets, vocab_size=self.config.vocab_size, **kwargs)

        return CausalLMOutputWithPast(loss=lm_loss, logits=lm_logits)
