"""Makes the other lists of a page, such as similar and trending items or what a user viewed and bought before."""
