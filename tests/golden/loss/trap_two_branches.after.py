# The loss is computed in one of two ways.
# block: LanguageModel("Model")
# skip: line 13: loss: no loss: `if labels is not None: loss = self.loss_function(logits, labels, self.vocab_size, **kwargs) else:...` holds more than the loss


class Model(PreTrainedModel):
    @can_return_tuple
    def forward(self, input_ids, labels=None, logits_to_keep=0, **kwargs):
        outputs = self.model(input_ids, **kwargs)
        logits = self.lm_head(outputs[0])

        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.vocab_size, **kwargs)
        else:
            loss = logits.sum()

        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
        )
