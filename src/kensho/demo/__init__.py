"""The whole story on real parts, and the small model it is told with."""
