"""The claims of the paper, C1 to C13, and what others got before us.

Paper: Kitaev, Kaiser, Levskaya, "Reformer: The Efficient Transformer", ICLR 2020 (arXiv 2001.04451). The reproduction
of 2021 is the fast.ai community's (ML Reproducibility Challenge 2020, OpenReview 3s8Y7dHYkN-, code
arampacha/reformer_fastai); where its published summary and tables give nothing on a claim, the entry says so. Every
number of the paper is from a single run, as far as is known.
"""

from reformer_lab.experiments.claim import Claim

C1 = Claim(
    id="C1",
    short="LSH attention takes near-linear time and is faster on long sequences",
    statement="LSH attention takes O(L log L) time instead of O(L²) and is much faster on long sequences.",
    source="abstract, tables 1 and 3",
    paper="linear in L and in the rounds (complexity tables; no times given)",
    reproduction_2021="confirmed: full attention out of memory at 32,768 tokens, LSH runs",
)
C2 = Claim(
    id="C2",
    short="Reversible layers: activation memory does not grow with depth",
    statement="Reversible layers store activations once instead of once for each layer: activation memory does not "
    "grow with depth.",
    source="sections 1 and 3, table 3",
    paper="independent of the number of layers (complexity table)",
    reproduction_2021="confirmed: 12 layers at length 4096 take 2.3 GB instead of 17.5 GB",
)
C3 = Claim(
    id="C3",
    short="Feed-forward in chunks: less memory, the same result",
    statement="Feeding the sequence through the feed-forward layer in chunks saves memory and changes no result.",
    source="sections 1 and 3",
    paper="numerically identical",
    reproduction_2021="no number published",
)
C4 = Claim(
    id="C4",
    short="Sharing queries and keys does not hurt",
    statement="Sharing queries and keys, with keys of unit length, does not hurt.",
    source="sections 2 and 5, figure 3 left",
    paper="does not hurt; on enwik8 it appears to train slightly faster (figure only)",
    reproduction_2021="no number known to us",
)
C5 = Claim(
    id="C5",
    short="A reversible Transformer learns as well as a regular one",
    statement="A reversible Transformer of the same size learns as well as a regular one.",
    source="section 3, figure 3 right",
    paper="nearly the same curves",
    reproduction_2021="not confirmed: 0.11 bits per character worse (6 layers, length 4096, mean of 3)",
)
C6 = Claim(
    id="C6",
    short="More hash rounds come closer to full attention, 8 almost match it",
    statement="With more hash rounds LSH attention comes closer to full attention, and with 8 rounds almost matches "
    "it; rounds may be raised at evaluation alone.",
    source="section 5, figure 4, table 2",
    paper="8 rounds almost match full attention",
    reproduction_2021="partly: more rounds are better, but a Transformer's quality was not reached",
)
C7 = Claim(
    id="C7",
    short="The duplication task is solved; accuracy rises with the rounds",
    statement="One layer solves the duplication task exactly, trained with full or with LSH attention, and accuracy "
    "rises with the rounds at evaluation.",
    source="section 5, table 2",
    paper="trained LSH-4: 100 % at LSH-8, 91.9 % at LSH-1; trained full: 100 % full, 94.8 % at LSH-8",
    reproduction_2021="partly: trained LSH-4: 99.7 % at LSH-8; trained full: 1.4 % at LSH-8",
)
C8 = Claim(
    id="C8",
    short="At a fixed number of tokens LSH stays flat, full attention slows down",
    statement="At a fixed number of tokens in a batch, full attention slows down as sequences get longer, LSH "
    "attention does not.",
    source="section 5, figure 5 right",
    paper="LSH flat from 1024 to 32,768 tokens",
    reproduction_2021="confirmed: full 0.07 to 0.61 s an evaluation step from 1024 to 8192 tokens; LSH-1 0.07 s throughout",
)
C9 = Claim(
    id="C9",
    short="Deeper Reformers are better",
    statement="Reformers of up to 20 layers train on one accelerator, and on enwik8 deeper ones are better.",
    source="section 5, figure 5 left",
    paper="deeper is better (figure only)",
    reproduction_2021="no number known to us",
)
C10 = Claim(
    id="C10",
    short="12 layers model enwik8 as well as Transformers of the time",
    statement="A Reformer of 12 layers models enwik8 as well as Transformers of its time.",
    source="section 5",
    paper="1.19 bits per byte after 20 K steps; 1.05 with longer training and tuning",
    reproduction_2021="not run at this size",
    not_run="needs days on an accelerator; the authors' configuration ships as the preset tuned_enwik8",
)
C11 = Claim(
    id="C11",
    short="Encoder-decoder: the Transformer's BLEU in translation",
    statement="A reversible encoder-decoder reaches the Transformer's BLEU in translation.",
    source="section 5, table 4",
    paper="WMT14 en-de: 27.6 base at 100 K steps, 29.1 big (Transformer: 27.3 and 28.4)",
    reproduction_2021="no number published",
    not_run="there is no encoder-decoder in this package; all test sentences are too short for LSH attention anyway",
)
C12 = Claim(
    id="C12",
    short="Parameters of a layer can wait in host memory",
    statement="The parameters of a layer can wait in host memory while other layers compute.",
    source="section 3",
    paper="stated, without an experiment",
    reproduction_2021="no number published",
    not_run="the paper has no experiment to re-run, and this package does not move parameters",
)
C13 = Claim(
    id="C13",
    short="A million tokens fit in 16 GB, half a million train in 8 GB",
    statement="One accelerator of 16 GB takes contexts of up to a million tokens; half a million train in under 8 GB.",
    source="Google AI blog, January 2020; Hugging Face blog, July 2020",
    paper="1,000,000 tokens in 16 GB; 524,288 in under 8 GB",
    reproduction_2021="not run at this length",
    not_run="needs a GPU; the model of half a million tokens ships as the preset crime_and_punishment, whose step on a CPU is "
    "among the benchmarks (results/benchmarks)",
)

CLAIMS: tuple[Claim, ...] = (C1, C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13)
