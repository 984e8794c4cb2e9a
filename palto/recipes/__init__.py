"""Applications, one file each, readable in one sitting, made of public names only."""
