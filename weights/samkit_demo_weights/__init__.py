"""samkit's demonstration weights: files alone, which `samkit.weights` finds.

Small networks trained on synthetic phantoms, to show the tool at work. They have never seen a patient and are for no
patient. The JSON beside each file says how it was made.
"""
