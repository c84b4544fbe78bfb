"""The four synthetic experiments of adaptive computation time (arXiv 1603.08983): parity, logic, addition, sort.

A recurrent network decides for every input how many steps to compute before it answers; each step costs.
One file per experiment holds its data, configuration, presets and task; the commands are ``tasks.act_parity``,
``tasks.act_logic``, ``tasks.act_addition`` and ``tasks.act_sort``.

Letters: T inputs of a sequence, B batch, I input width, A answers per input, C classes of an answer. A batch
is (inputs (T, B, I) float32, targets (T, B, A) int64 with -1 where nothing is asked, mask (T, B) bool with
False at padding, difficulty (T, B) int64 for the pictures).
"""
