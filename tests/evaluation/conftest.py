"""Tests of `medisyn.evaluation`.

Oracles are live: each measure is compared with an independent implementation in the same process (monai, torchmetrics,
prdc, scikit-image, scikit-learn, scipy, faiss), or with numbers worked by hand or printed in a paper, which stand in
the test. So there is no folder of stored oracle values that could grow old; a test that needs a package which is not
installed is skipped.
"""
