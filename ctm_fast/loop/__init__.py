"""All ticks of a CTM in one call of the native CPU kernels.

``synapses`` plans and runs the synapse network, ``ticks`` the loop itself with its backward pass.
"""
