"""All ticks of a CTM as one autograd function on the native CPU kernels.

``synapses`` plans and runs the synapse network, ``ticks`` the loop itself with its backward pass.
"""
