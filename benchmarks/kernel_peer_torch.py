"""PyTorch's CTC as a peer: `python kernel_peer_torch.py INPUTS.npz GIBIBYTES`."""

import torch
from kernel_peer_loop import load, serve, timed


def main():
    torch.set_num_threads(2)
    data = load()
    logits = torch.tensor(data["logits"], requires_grad=True)
    labels, lengths = torch.tensor(data["labels"]), torch.tensor(data["lengths"])
    sizes = torch.full((labels.shape[0],), labels.shape[1])

    def step():
        logits.grad = None
        log_posteriors = logits.log_softmax(2)
        loss = torch.nn.functional.ctc_loss(log_posteriors, labels, lengths, sizes, reduction="sum")
        loss.backward()
        return loss

    def once():
        milliseconds, loss = timed(step)
        return milliseconds, float(loss.detach()), logits.grad.numpy()

    serve({"torch": torch.__version__}, once)


main()
