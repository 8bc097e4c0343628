# A condition on two things.
# block: LanguageModel("Model")
# skip: line 13: loss: no loss: `if labels is not None and self.training: loss = self.loss_function(logits, labels, self.vocab_siz...` holds more than the loss


class Model(PreTrainedModel):
    @can_return_tuple
    def forward(self, input_ids, labels=None, logits_to_keep=0, **kwargs):
        outputs = self.model(input_ids, **kwargs)
        logits = self.lm_head(outputs[0])

        loss = None
        if labels is not None and self.training:
            loss = self.loss_function(logits, labels, self.vocab_size, **kwargs)

        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
        )
