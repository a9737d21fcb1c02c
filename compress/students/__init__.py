"""Students: the space they come from, the ladder and the search that choose, and the stages that train them."""
